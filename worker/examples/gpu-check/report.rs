//! JSON, and a Markdown table of it.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::{measure::Outcome, options::Options};

/// Everything, with what is modelled beside what was measured. `emulated` says that no time in it is a GPU's.
pub fn json(options: &Options, outcome: &Outcome) -> Value {
    let (major, minor) = outcome.device.capability;
    let peers = options.peers.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
    let peers: Value = peers.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or(Value::Null);
    let log = options.tests.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
    let tests = log.map_or(Value::Null, |log| tests(&log));
    let kernels: Vec<Value> = outcome
        .kernels
        .iter()
        .map(|kernel| {
            json!({
                "format": kernel.format, "step": kernel.step, "part": kernel.part, "kernel": kernel.name,
                "count": kernel.count, "bytes": kernel.bytes, "operations": kernel.operations,
                "seconds": kernel.seconds, "modelledSeconds": kernel.modelled.seconds,
                "bound": kernel.modelled.bound.name(), "ofRoofline": kernel.modelled.seconds / kernel.seconds,
            })
        })
        .collect();
    let steps: Vec<Value> = outcome
        .steps
        .iter()
        .map(|step| {
            json!({
                "format": step.format, "kind": step.kind, "batch": step.batch, "context": step.context,
                "tokens": step.tokens, "seconds": step.seconds, "overlappedSeconds": step.overlapped, "tokensPerSecond": step.tokens as f64 / step.seconds,
                "modelledSeconds": step.modelled, "modelledTokensPerSecond": step.tokens as f64 / step.modelled,
            })
        })
        .collect();
    let switches: Vec<Value> = outcome
        .switches
        .iter()
        .map(|switch| {
            json!({
                "from": switch.from, "to": switch.to, "bytes": switch.bytes, "seconds": switch.seconds,
                "modelledSeconds": switch.modelled,
            })
        })
        .collect();
    let crossover: Vec<Value> = outcome
        .crossover
        .iter()
        .map(|c| json!({"format": c.format, "rows": c.rows, "ownSeconds": c.own, "unpackedSeconds": c.unpacked}))
        .collect();
    json!({
        "emulated": outcome.emulated,
        "device": {
            "name": outcome.device.name, "capability": format!("{major}.{minor}"), "memory": outcome.device.memory,
            "multiprocessors": outcome.device.processors,
        },
        "modelledOn": outcome.hardware.name,
        "layers": options.layers,
        "tiny": options.tiny,
        "tests": tests,
        "bandwidth": {
            "device": outcome.bandwidth.device, "fromHost": outcome.bandwidth.from_host,
            "toHost": outcome.bandwidth.to_host, "nominalDevice": outcome.hardware.memory_bandwidth,
            "modelledHost": outcome.hardware.host_link,
        },
        "kernels": kernels,
        "steps": steps,
        "switches": switches,
        "crossover": crossover,
        "peers": peers,
        "kernelOrigins": outcome.origins,
        "notes": outcome.notes,
        "leftOut": outcome.left_out,
        "seconds": outcome.seconds,
    })
}

/// How many tests passed and failed, from what Rust's test program prints; one that did not get to its end failed.
fn tests(log: &str) -> Value {
    let result = log.lines().rev().find_map(|line| line.strip_prefix("test result: "));
    let count = |what: &str| -> Option<u64> {
        let part = result?.split(['.', ';']).find_map(|part| part.trim().strip_suffix(what))?;
        part.trim().parse().ok()
    };
    match (count("passed"), count("failed")) {
        (Some(passed), Some(failed)) => json!({"passed": passed, "failed": failed}),
        _ => json!({"passed": 0, "failed": 1, "reason": "the tests did not get to their end"}),
    }
}

/// The same for people.
pub fn markdown(json: &Value) -> String {
    let mut text = String::new();
    let _ = write_markdown(&mut text, json);
    text
}

fn write_markdown(text: &mut String, json: &Value) -> std::fmt::Result {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rows = |value: &Value| value.as_array().cloned().unwrap_or_default();
    writeln!(text, "# GPU check: {}\n", word(&json["device"]["name"]))?;
    if json["emulated"] == true {
        writeln!(
            text,
            "**Emulated: this device runs kernels on the host. No time and no rate below is a GPU's; the run shows that the \
             program works.**\n"
        )?;
    }
    writeln!(
        text,
        "{} layers of {}, random weights, FP8 cache; modelled on {}. {:.0} s.\n",
        json["layers"],
        if json["tiny"] == true { "a tiny model" } else { "Llama-3.1-8B's sides" },
        word(&json["modelledOn"]),
        number(&json["seconds"]),
    )?;
    if json["tests"].is_object() {
        writeln!(
            text,
            "Tests on the device: {} passed, {} failed.\n",
            json["tests"]["passed"], json["tests"]["failed"]
        )?;
    }
    for key in ["notes", "leftOut"] {
        for sentence in rows(&json[key]) {
            writeln!(text, "- {}", word(&sentence))?;
        }
    }
    let bandwidth = &json["bandwidth"];
    writeln!(text, "## Bandwidth\n\n| copy | GB/s | nominal or modelled |\n|---|--:|--:|")?;
    for (name, key, against) in [
        ("within the device, read and written", "device", "nominalDevice"),
        ("from pinned host memory", "fromHost", "modelledHost"),
        ("to pinned host memory", "toHost", "modelledHost"),
    ] {
        writeln!(text, "| {name} | {:.1} | {:.1} |", number(&bandwidth[key]) / 1e9, number(&bandwidth[against]) / 1e9)?;
    }
    writeln!(
        text,
        "\n## Steps\n\n| format | step | context | ms | tokens/s | ms, kernels overlapped | modelled ms | modelled tokens/s |\n|---|---|--:|--:|--:|--:|--:|--:|"
    )?;
    for step in rows(&json["steps"]) {
        let title = if step["kind"] == "decode" {
            format!("decode x{}", step["batch"])
        } else {
            format!("prefill {}", step["tokens"])
        };
        writeln!(
            text,
            "| {} | {title} | {} | {:.3} | {:.0} | {} | {:.3} | {:.0} |",
            word(&step["format"]),
            step["context"],
            number(&step["seconds"]) * 1e3,
            number(&step["tokensPerSecond"]),
            step["overlappedSeconds"].as_f64().map_or_else(String::new, |seconds| format!("{:.3}", seconds * 1e3)),
            number(&step["modelledSeconds"]) * 1e3,
            number(&step["modelledTokensPerSecond"]),
        )?;
    }
    writeln!(text, "\n## Switches\n\n| from | to | GB | ms | modelled ms |\n|---|---|--:|--:|--:|")?;
    for switch in rows(&json["switches"]) {
        writeln!(
            text,
            "| {} | {} | {:.3} | {:.1} | {:.1} |",
            word(&switch["from"]),
            word(&switch["to"]),
            number(&switch["bytes"]) / 1e9,
            number(&switch["seconds"]) * 1e3,
            number(&switch["modelledSeconds"]) * 1e3,
        )?;
    }
    writeln!(
        text,
        "\n## Products of a layer with group-wise weights\n\n| format | rows | own kernels, us | unpacked for cuBLASLt, us |\n|---|--:|--:|--:|"
    )?;
    for row in rows(&json["crossover"]) {
        let [own, unpacked] = ["ownSeconds", "unpackedSeconds"].map(|key| number(&row[key]) * 1e6);
        writeln!(text, "| {} | {} | {own:.1} | {unpacked:.1} |", word(&row["format"]), row["rows"])?;
    }
    writeln!(
        text,
        "\n## Kernels\n\n`of roofline`: modelled over measured time; a kernel with the bound `launch` does next to nothing.\n\n\
         | format | step | part | kernel | count | us | modelled us | bound | of roofline |\n|---|---|---|---|--:|--:|--:|---|--:|"
    )?;
    for kernel in rows(&json["kernels"]) {
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {:.2} | {:.2} | {} | {:.0} % |",
            word(&kernel["format"]),
            word(&kernel["step"]),
            word(&kernel["part"]),
            word(&kernel["kernel"]),
            kernel["count"],
            number(&kernel["seconds"]) * 1e6,
            number(&kernel["modelledSeconds"]) * 1e6,
            word(&kernel["bound"]),
            100.0 * number(&kernel["ofRoofline"]),
        )?;
    }
    let peers = rows(&json["peers"]["products"]);
    writeln!(text, "\n## Beside torch and vLLM\n")?;
    if peers.is_empty() {
        let why = word(&json["peers"]["reason"]);
        return writeln!(text, "{}", if why.is_empty() { "Not measured: neither was asked.".to_owned() } else { why });
    }
    writeln!(text, "| by | product | rows | n | k | us |\n|---|---|--:|--:|--:|--:|")?;
    for product in peers {
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {:.2} |",
            word(&product["by"]),
            word(&product["product"]),
            product["rows"],
            product["n"],
            product["k"],
            number(&product["seconds"]) * 1e6,
        )?;
    }
    Ok(())
}
