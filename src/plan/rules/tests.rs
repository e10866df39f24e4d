//! Names around the number of a layer; rules behind rules.

use super::*;

#[test]
fn a_name_is_cut_at_its_first_number() {
    for (name, parts) in [
        ("blk.12.ffn_down.weight", ("blk.", Some(12), ".ffn_down.weight")),
        (
            "model.layers.0.mlp.experts.3.up_proj.weight",
            ("model.layers.", Some(0), ".mlp.experts.3.up_proj.weight"),
        ),
        ("7", ("", Some(7), "")),
        ("output.weight", ("output.weight", None, "")),
        ("blk.007.x", ("blk.007.x", None, "")),
        ("q4_0.weight", ("q4_0.weight", None, "")),
    ] {
        assert_eq!(numbered(name), parts, "{name}");
    }
}

#[test]
fn the_format_of_a_recipe_stays_behind_arguments() {
    let arguments = Rules::new(vec![Rule::from_argument("a=q4_0").unwrap()]);
    let recipe =
        Rules::from_toml(std::path::Path::new("r"), "to = 'q6_k'\n[[rule]]\ntarget = 'b'\ntype = 'q5_0'")
            .unwrap();
    let both = arguments.then(recipe);
    assert_eq!(both.iter().map(|rule| rule.target.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(both.check_format("q4_0").is_err() && both.check_format("q6_k").is_ok());
}

#[test]
fn an_argument_is_cut_at_its_last_equals_sign() {
    let rule = Rule::from_argument("blk(?=.1)=Q6_K").unwrap();
    assert_eq!((rule.target.as_str(), rule.choice.to_string().as_str()), ("blk(?=.1)", "Q6_K"));
    for text in ["", "x", "=q4_0", "x="] {
        assert!(Rule::from_argument(text).is_err(), "{text}");
    }
}
