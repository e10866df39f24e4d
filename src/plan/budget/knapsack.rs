//! One offer from each item, so that costs stay within a budget and the loss is small.
//!
//! Of each item only the offers on the lower convex hull of loss over cost matter at first. Going up along the
//! hulls, the step that takes away most loss per cost is taken first, over all items: as long as every
//! step fits, the choice is the best there is for what it costs (it is that of a Lagrange multiplier). Steps
//! that do not fit any more are passed over, and what is left is filled with any offers that still
//! help. So the loss is above the optimum by less than the loss that one step takes away.

use std::cmp::Ordering;

/// A choice of an item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Offer {
    pub(super) cost: u64,
    pub(super) loss: f64,
}

/// Something of which one offer is taken.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    /// At least one.
    pub(super) offers: Vec<Offer>,
}

/// From one corner of a hull to the next.
struct Step {
    item: usize,
    from: usize,
    to: usize,
    cost: u64,
    /// Loss taken away per cost.
    rate: f64,
}

/// The position of the offer taken of each item; `None` when even the cheapest go over the budget.
pub(super) fn solve(items: &[Item], budget: u64) -> Option<Vec<usize>> {
    let mut taken = cheapest(items);
    let mut left = budget.checked_sub(cost(items, &taken))?;
    let mut steps: Vec<Step> =
        items.iter().enumerate().flat_map(|(item, offers)| steps(item, offers)).collect();
    // Stable: of equal rates, those of an item stay in their order.
    steps.sort_by(|a, b| b.rate.total_cmp(&a.rate).then(a.item.cmp(&b.item)));
    for step in steps {
        if taken[step.item] == step.from && step.cost <= left {
            taken[step.item] = step.to;
            left -= step.cost;
        }
    }
    while let Some((item, offer)) = best_single(items, &taken, left) {
        left = left + items[item].offers[taken[item]].cost - items[item].offers[offer].cost;
        taken[item] = offer;
    }
    Some(taken)
}

/// The cheapest offer of each item, of equal ones that with the least loss.
pub(super) fn cheapest(items: &[Item]) -> Vec<usize> {
    let cheapest = items.iter().map(|item| by_cost(item).first().copied().unwrap_or(0));
    cheapest.collect()
}

fn cost(items: &[Item], taken: &[usize]) -> u64 {
    items.iter().zip(taken).map(|(item, &offer)| item.offers[offer].cost).sum()
}

/// Offers by cost, then loss, then position.
fn by_cost(item: &Item) -> Vec<usize> {
    let mut order: Vec<usize> = (0..item.offers.len()).collect();
    order.sort_by(|&a, &b| {
        let (a_offer, b_offer) = (item.offers[a], item.offers[b]);
        a_offer.cost.cmp(&b_offer.cost).then(a_offer.loss.total_cmp(&b_offer.loss)).then(a.cmp(&b))
    });
    order
}

/// The lower convex hull from the cheapest offer to that with the least loss.
fn steps(number: usize, item: &Item) -> Vec<Step> {
    let mut hull: Vec<usize> = Vec::new();
    for at in by_cost(item) {
        let offer = item.offers[at];
        if hull.last().is_some_and(|&last| item.offers[last].loss <= offer.loss) {
            continue;
        }
        while let [.., before, last] = hull[..]
            && rate(item.offers[before], item.offers[last]).total_cmp(&rate(item.offers[last], offer))
                == Ordering::Less
        {
            hull.pop();
        }
        hull.push(at);
    }
    let steps = hull.windows(2).map(|pair| {
        let (from, to) = (item.offers[pair[0]], item.offers[pair[1]]);
        Step { item: number, from: pair[0], to: pair[1], cost: to.cost - from.cost, rate: rate(from, to) }
    });
    steps.collect()
}

/// Loss taken away per cost on the way to a dearer offer.
fn rate(from: Offer, to: Offer) -> f64 {
    (from.loss - to.loss) / (to.cost - from.cost).max(1) as f64
}

/// The change of one item that takes away most loss and fits.
fn best_single(items: &[Item], taken: &[usize], left: u64) -> Option<(usize, usize)> {
    let mut best: Option<(f64, usize, usize)> = None;
    for (number, (item, &now)) in items.iter().zip(taken).enumerate() {
        let now = item.offers[now];
        for (at, offer) in item.offers.iter().enumerate() {
            let gain = now.loss - offer.loss;
            if gain > 0.0 && offer.cost <= now.cost + left && best.is_none_or(|(most, _, _)| gain > most) {
                best = Some((gain, number, at));
            }
        }
    }
    best.map(|(_, item, offer)| (item, offer))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn loss(items: &[Item], taken: &[usize]) -> f64 {
        items.iter().zip(taken).map(|(item, &offer)| item.offers[offer].loss).sum()
    }

    /// The least loss within `budget`, by trying every budget up to it.
    fn oracle(items: &[Item], budget: u64) -> Option<f64> {
        let mut least = vec![Some(0.0f64); budget as usize + 1];
        for item in items {
            let with = |budget: usize| {
                let offers = item.offers.iter().filter_map(|offer| {
                    let rest = budget.checked_sub(offer.cost as usize)?;
                    Some(least[rest]? + offer.loss)
                });
                offers.reduce(f64::min)
            };
            least = (0..least.len()).map(with).collect();
        }
        least[budget as usize]
    }

    fn items() -> impl Strategy<Value = Vec<Item>> {
        let offer = (1u64..40, 0u32..1000).prop_map(|(cost, loss)| Offer { cost, loss: f64::from(loss) });
        let item = prop::collection::vec(offer, 1..7).prop_map(|offers| Item { offers });
        prop::collection::vec(item, 1..9)
    }

    proptest! {
        #[test]
        fn within_a_step_of_the_best(items in items(), budget in 0u64..320) {
            let best = oracle(&items, budget);
            let found = solve(&items, budget);
            prop_assert_eq!(found.is_some(), best.is_some());
            let (Some(found), Some(best)) = (found, best) else { return Ok(()) };
            prop_assert!(cost(&items, &found) <= budget);
            let step = items.iter().enumerate().flat_map(|(number, item)| steps(number, item))
                .map(|step| step.rate * step.cost as f64).fold(0.0, f64::max);
            let loss = loss(&items, &found);
            prop_assert!(loss >= best - 1e-9);
            prop_assert!(loss <= best + step + 1e-9, "{} {} {}", loss, best, step);
        }

        #[test]
        fn the_best_wherever_every_step_fits(items in items(), rounds in 0usize..20) {
            // The budget is just what some steps along the hulls cost.
            let mut all: Vec<Step> = items.iter().enumerate().flat_map(|(n, item)| steps(n, item)).collect();
            all.sort_by(|a, b| b.rate.total_cmp(&a.rate).then(a.item.cmp(&b.item)));
            let budget = cost(&items, &cheapest(&items)) + all.iter().take(rounds).map(|step| step.cost).sum::<u64>();
            let found = solve(&items, budget).unwrap();
            let best = oracle(&items, budget).unwrap();
            prop_assert!((loss(&items, &found) - best).abs() < 1e-9);
        }

        #[test]
        fn enough_for_all_gives_the_least_loss_and_answers_repeat(items in items(), budget in 0u64..300) {
            let all = items.iter().map(|item| item.offers.iter().map(|offer| offer.cost).max().unwrap_or(0)).sum();
            let found = solve(&items, all).unwrap();
            let least: f64 = items.iter()
                .map(|item| item.offers.iter().map(|offer| offer.loss).fold(f64::INFINITY, f64::min)).sum();
            prop_assert_eq!(loss(&items, &found), least);
            prop_assert_eq!(solve(&items, budget), solve(&items, budget));
        }
    }

    #[test]
    fn what_is_left_is_filled_with_offers_off_the_hull() {
        let offers = [(10, 100.0), (14, 90.0), (20, 0.0)].map(|(cost, loss)| Offer { cost, loss });
        let items = [Item { offers: offers.to_vec() }];
        assert_eq!(solve(&items, 9), None);
        assert_eq!(solve(&items, 13), Some(vec![0]));
        assert_eq!(solve(&items, 15), Some(vec![1]));
        assert_eq!(solve(&items, 20), Some(vec![2]));
        assert_eq!(solve(&[], 0), Some(vec![]));
    }
}
