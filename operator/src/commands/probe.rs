//! `modelprofile probe URL...`: does it answer? For pods whose image has no shell and no curl, such as that of `helm test`.

use std::net::Ipv6Addr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;

/// One answer may take this long; a Service that kube-proxy does not know yet hangs.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// Arguments of `modelprofile probe`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What should answer a GET with a status of 200 to 299. Several are asked one after the other.
    #[arg(value_name = "URL", required = true)]
    urls: Vec<String>,
    /// Seconds for all of them to answer; each is asked again until then.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    within: u64,
}

/// Asks until each has answered. Prints a line for each; the exit code is 1 if one did not answer in time.
///
/// # Errors
/// The runtime or the HTTP client can not start.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let client =
        reqwest::Client::builder().timeout(PATIENCE).no_proxy().build().context("cannot make an HTTP client")?;
    super::runtime()?.block_on(async {
        let deadline = Instant::now() + Duration::from_secs(args.within);
        let mut code = ExitCode::SUCCESS;
        for url in args.urls.iter().map(|url| bracketed(url)) {
            match until(&client, &url, deadline).await {
                Ok(status) => println!("{url}: answered {status}"),
                Err(reason) => {
                    eprintln!("{url}: no answer within {} s; at the last try: {reason}", args.within);
                    code = ExitCode::FAILURE;
                }
            }
        }
        Ok(code)
    })
}

/// The address of a Service, as a pod finds it in its environment, has no brackets around IPv6; in a URL it needs them.
fn bracketed(url: &str) -> String {
    let split = || {
        let (scheme, rest) = url.split_once("://")?;
        let end = rest.find('/').unwrap_or(rest.len());
        let (host, port) = rest[..end].rsplit_once(':')?;
        host.parse::<Ipv6Addr>().ok()?;
        Some(format!("{scheme}://[{host}]:{port}{}", &rest[end..]))
    };
    split().unwrap_or_else(|| url.to_owned())
}

/// The status of the first good answer, or why there was none at the last try. It is tried at least once.
async fn until(client: &reqwest::Client, url: &str, deadline: Instant) -> Result<u16, String> {
    loop {
        let reason = match client.get(url).send().await {
            Ok(answer) if answer.status().is_success() => return Ok(answer.status().as_u16()),
            Ok(answer) => format!("status {}", answer.status().as_u16()),
            Err(error) => format!("{:#}", anyhow::Error::from(error)),
        };
        if Instant::now() + PAUSE >= deadline {
            return Err(reason);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Answers each connection with the next of these statuses, then listens no more.
    fn server(statuses: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/metrics", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for status in statuses {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 1024]).unwrap();
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(head.as_bytes()).unwrap();
            }
        });
        url
    }

    fn probe(url: String, within: u64) -> ExitCode {
        run(&Args { urls: vec![url], within }).unwrap()
    }

    #[test]
    fn it_asks_until_the_answer_is_good() {
        assert_eq!(probe(server(&["503 Service Unavailable", "200 OK"]), 30), ExitCode::SUCCESS);
    }

    #[test]
    fn an_ipv6_address_gets_its_brackets() {
        for (given, expected) in [
            ("http://fd00::17:8080/metrics", "http://[fd00::17]:8080/metrics"),
            ("http://[fd00::17]:8080/metrics", "http://[fd00::17]:8080/metrics"),
            ("http://10.0.0.1:8080/metrics", "http://10.0.0.1:8080/metrics"),
            ("https://name", "https://name"),
        ] {
            assert_eq!(bracketed(given), expected);
        }
    }

    #[test]
    fn an_answer_that_stays_bad_and_none_at_all_are_failures() {
        assert_eq!(probe(server(&["503 Service Unavailable"]), 0), ExitCode::FAILURE);
        assert_eq!(probe(server(&[]), 0), ExitCode::FAILURE);
    }
}
