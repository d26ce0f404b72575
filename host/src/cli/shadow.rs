//! The command for shadow runs.

use anyhow::bail;
use clap::{Args, ValueEnum};
use reqwest::Method;
use serde_json::{Value, json};

use super::commands::{part, text};
use super::{EXIT_OK, Server, out};

#[derive(Debug, Args)]
pub(super) struct ShadowArgs {
    /// The workflow's name
    name: String,
    /// The version that shadows run: shadows a share of all runs from now on
    #[arg(long, requires = "share", conflicts_with_all = ["off", "report"])]
    version: Option<String>,
    /// Percent of runs that are shadowed, such as 12.5
    #[arg(long, requires = "version")]
    share: Option<f64>,
    /// What becomes of a shadow's requests and questions to models that its run has not made: replay (the step fails) or live
    /// (they are made, with everything that follows from them)
    #[arg(long, value_enum, default_value_t = Outbound::Replay, requires = "version")]
    outbound: Outbound,
    /// Shadows nothing any more
    #[arg(long, conflicts_with = "report")]
    off: bool,
    /// Shows what came of runs and their shadows
    #[arg(long)]
    report: bool,
    /// How many pairs of the report
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Outbound {
    Replay,
    Live,
}

pub(super) async fn shadow(args: ShadowArgs) -> anyhow::Result<u8> {
    let path = format!("/v1/workflows/{}/shadow", part(&args.name));
    let client = args.server.client()?;
    if args.off {
        client.json(Method::DELETE, &path, None).await?;
        out::note(format_args!("runs of {} are not shadowed any more", args.name));
        return Ok(EXIT_OK);
    }
    if args.report {
        let report = client.json(Method::GET, &format!("{path}/report?limit={}", args.limit), None).await?;
        if args.json {
            out::json(&report);
        } else {
            show_report(&report);
        }
        return Ok(EXIT_OK);
    }
    let setting = match (&args.version, args.share) {
        (Some(version), Some(share)) => {
            let outbound = match args.outbound {
                Outbound::Replay => "replay",
                Outbound::Live => "live",
            };
            let body = json!({ "version": version, "share": share, "outbound": outbound });
            client.json(Method::PUT, &path, Some(&body)).await?
        }
        (None, None) => client.json(Method::GET, &path, None).await?,
        // clap sees to it.
        _ => bail!("--version and --share belong together"),
    };
    if args.json {
        out::json(&setting);
        return Ok(EXIT_OK);
    }
    let share = setting.get("share").and_then(Value::as_f64).unwrap_or_default();
    let (version, outbound) = (text(&setting, "version"), text(&setting, "outbound"));
    out::line(format_args!("{share}% of the runs of {} are shadowed by {version} ({outbound})", args.name));
    if let Some(warning) = setting.get("warning").and_then(Value::as_str) {
        out::note(warning);
    }
    Ok(EXIT_OK)
}

/// The totals in a few lines, then a line for each pair.
fn show_report(report: &Value) {
    let Some(version) = report.get("version").and_then(Value::as_str) else {
        out::line("nothing was shadowed");
        return;
    };
    let total = |name: &str| report.pointer(&format!("/totals/{name}")).and_then(Value::as_u64).unwrap_or_default();
    let at_least = match report.pointer("/totals/truncated") {
        Some(Value::Bool(true)) => " (the latest; there are more)",
        _ => "",
    };
    out::line(format_args!("{} shadowed by {version}", text(report, "workflow")));
    out::line(format_args!(
        "{} runs{at_least}: {} compared, {} not compared, {} pending",
        total("pairs"),
        total("compared"),
        total("not_compared"),
        total("pending")
    ));
    out::line(format_args!(
        "{} equal, {} different, {} failed only as a shadow, {} failed only in the run itself",
        total("equal"),
        total("different"),
        total("shadow_failed_only"),
        total("primary_failed_only")
    ));
    if let Some(ratio) = report.pointer("/totals/fuel_ratio").and_then(Value::as_f64) {
        out::line(format_args!("the shadows used {ratio:.2} times the fuel{}", cost(report)));
    }
    let pairs = report.get("data").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if !pairs.is_empty() {
        out::line(format_args!("\n{:<36}  {:<36}  {:<19}  {:>6}  what", "run", "shadow", "verdict", "fuel"));
    }
    for pair in pairs {
        out::line(line_of(pair).trim_end());
    }
}

/// What models cost, where they say so.
fn cost(report: &Value) -> String {
    let usd = |side: &str| {
        let micros = report.pointer(&format!("/totals/{side}/cost_micros")).and_then(Value::as_u64)?;
        Some(micros as f64 / 1_000_000.0)
    };
    match (usd("primary_usage"), usd("shadow_usage")) {
        (None, None) => String::new(),
        (runs, shadows) => {
            let (runs, shadows) = (runs.unwrap_or_default(), shadows.unwrap_or_default());
            format!("; models cost {shadows:.6} USD in the shadows, {runs:.6} USD in the runs")
        }
    }
}

fn line_of(pair: &Value) -> String {
    let field = |name: &str| pair.pointer(name).and_then(Value::as_str).unwrap_or_default();
    let fuel = |side: &str| pair.pointer(&format!("/{side}/fuel_used")).and_then(Value::as_u64);
    let ratio = match (fuel("run"), fuel("shadow")) {
        (Some(run @ 1..), Some(shadow)) => format!("{:.2}", shadow as f64 / run as f64),
        _ => String::new(),
    };
    let code = |side: &str| match field(&format!("/{side}/failure_code")) {
        "" => field(&format!("/{side}/status")).to_owned(),
        code => code.to_owned(),
    };
    let what = match (field("/verdict"), field("/problem/code")) {
        (_, problem) if !problem.is_empty() => problem.to_owned(),
        ("different", _) if pair.pointer("/output_equal") == Some(&Value::Bool(false)) => match field("/differs_at") {
            "" => "the output".to_owned(),
            at => format!("the output at {at}"),
        },
        ("equal", _) if field("/run/failure_code").is_empty() => String::new(),
        _ => format!("{} / {}", code("run"), code("shadow")),
    };
    // Places and codes are a workflow's words.
    out::printable(&format!(
        "{:<36}  {:<36}  {:<19}  {ratio:>6}  {what}",
        field("/run/id"),
        field("/shadow/id"),
        field("/verdict")
    ))
}
