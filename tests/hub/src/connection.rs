//! One connection: read a request, answer it, note it, until either side has had enough.

use std::io::{self, BufReader};
use std::net::TcpStream;

use crate::delivery::Delivery;
use crate::http::HttpRequest;
use crate::hub::Shared;
use crate::record::{Host, Request, lock};
use crate::routes;

pub(crate) fn serve(stream: &TcpStream, host: Host, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while !shared.stopping() {
        let Some(request) = HttpRequest::read(&mut reader)? else { return Ok(()) };
        let answer = routes::answer(shared, host, &request);
        let file = answer.file;
        let mut delivery = Delivery::new(answer.response, request.method == "HEAD");
        for fault in lock(&shared.faults).iter_mut() {
            if fault.matches(host, &request.method, request.path(), file.as_deref())
                && delivery.is_harmed_by(&fault.action)
                && fault.strikes()
            {
                delivery.apply(&fault.action);
            }
        }
        shared.record.add(Request {
            host,
            method: request.method.clone(),
            path: request.target.clone(),
            range: request.header("range").map(str::to_string),
            had_token: request.header("authorization").is_some(),
            file,
            status: if delivery.refused { 0 } else { delivery.response.status },
        });
        if !delivery.send(&mut &*stream, shared, request.wants_close())? {
            return Ok(());
        }
    }
    Ok(())
}
