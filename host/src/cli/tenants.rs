//! The commands about what a tenant uses and may use.

use reqwest::Method;
use serde_json::{Map, Value, json};

use super::commands::part;
use super::{AdminServer, EXIT_OK, Server, Setting, TenantSettings, out};

/// As the tenant itself.
pub(super) async fn usage(server: &Server) -> anyhow::Result<u8> {
    out::json(&server.client()?.json(Method::GET, "/v1/usage", None).await?);
    Ok(EXIT_OK)
}

/// As the operator.
pub(super) async fn show(server: &AdminServer, id: &str) -> anyhow::Result<()> {
    out::json(&server.client()?.json(Method::GET, &path(id), None).await?);
    Ok(())
}

pub(super) async fn set(server: &AdminServer, id: &str, settings: &TenantSettings) -> anyhow::Result<()> {
    out::json(&server.client()?.json(Method::PATCH, &path(id), Some(&settings.body())).await?);
    Ok(())
}

fn path(id: &str) -> String {
    format!("/v1/admin/tenants/{}", part(id))
}

impl TenantSettings {
    /// What was given, in the form that the API takes.
    fn body(&self) -> Value {
        let given = |settings: &[(&str, Option<Setting>)]| -> Map<String, Value> {
            let given = settings.iter().filter_map(|(name, setting)| setting.map(|setting| (*name, setting)));
            given.map(|(name, Setting(value))| (name.to_owned(), json!(value))).collect()
        };
        let mut body = given(&[
            ("retention_days", self.retention_days),
            ("artifact_retention_days", self.artifact_retention_days),
        ]);
        let limits = given(&[
            ("journal_bytes", self.journal_bytes),
            ("unfinished_runs", self.unfinished_runs),
            ("run_events", self.run_events),
            ("input_bytes", self.input_bytes),
            ("artifact_bytes", self.artifact_bytes),
        ]);
        body.insert("limits".to_owned(), limits.into());
        body.into()
    }
}
