//! Triggers of many tenants: what one of them has to do, or does not get done, is not felt by another.

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{fired, inputs, put, set_up, told, with_secret};
use crate::outside::server::{Act, Scripted, response};
use crate::support::{Server, eventually, problem};
use crate::tenancy;

/// Sets something up as another tenant.
async fn set_up_as(server: &Server, key: &str, path: &str, body: Value) {
    let answer = server.request_as(key, Method::PUT, path).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK, "{}", answer.text().await.unwrap());
}

/// One look went through the first 10,000 of what was due of all tenants: whoever had more hid everybody behind.
#[tokio::test]
async fn twenty_thousand_deliveries_to_a_dead_endpoint_delay_no_other_tenant() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    with_secret(&server).await;
    let dead = Scripted::start(vec![vec![Act::Stall]]).await;
    for number in 0..49 {
        let webhook = json!({ "url": dead.url("/"), "secret": "HOOK" });
        set_up(&server, &format!("/v1/webhooks/dead-{number}"), webhook).await;
    }
    for _ in 0..10 {
        join_all((0..41).map(|_| server.start_run("w", json!(null)))).await;
    }
    let ended = |page: &Value| page["data"].as_array().unwrap().len();
    eventually("the ends of the runs", || async {
        (ended(&server.get("/v1/runs?status=completed&limit=500").await) == 410).then_some(())
    })
    .await;

    let rival = tenancy::create(&server, "rival").key;
    let receiver = Scripted::start(vec![response("200 OK", "", "")]).await;
    server.deploy_as(&rival, "w", "stepwell_noop").await;
    set_up_as(&server, &rival, "/v1/secrets/HOOK", json!({ "value": super::SECRET })).await;
    let webhook = json!({ "url": receiver.url("/"), "secret": "HOOK" });
    set_up_as(&server, &rival, "/v1/webhooks/out", webhook).await;
    let started = server.request_as(&rival, Method::POST, "/v1/workflows/w/runs").json(&json!({ "input": 1 }));
    assert_eq!(started.send().await.unwrap().status(), StatusCode::ACCEPTED);
    told(&receiver, 1).await;
}

#[tokio::test]
async fn schedules_of_every_second_delay_nobody_elses() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    for number in 0..200 {
        let trigger = json!({ "kind": "cron", "workflow": "w", "schedule": "* * * * * *" });
        set_up(&server, &format!("/v1/triggers/t-{number}"), trigger).await;
    }
    let rival = tenancy::create(&server, "rival").key;
    server.deploy_as(&rival, "w", "stepwell_noop").await;
    let trigger = json!({ "kind": "cron", "workflow": "w", "schedule": "* * * * * *" });
    set_up_as(&server, &rival, "/v1/triggers/t", trigger).await;
    let runs = eventually("runs of the other tenant", || async {
        let page = server.request_as(&rival, Method::GET, "/v1/runs").send().await.unwrap();
        let page: Value = page.json().await.unwrap();
        let runs = page["data"].as_array().unwrap().clone();
        (runs.len() >= 4).then_some(runs)
    })
    .await;
    let mut seconds: Vec<i64> = runs
        .iter()
        .map(|run| run["created_at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second())
        .collect();
    seconds.sort_unstable();
    assert!(seconds.windows(2).all(|pair| (1..=2).contains(&(pair[1] - pair[0]))), "{seconds:?}");
}

#[tokio::test]
async fn endless_filters_of_some_tenants_delay_no_event_of_another() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    // It never ends by itself, and takes hardly any memory.
    let endless = "reduce range(1e15) as $i (0; . + 1)";
    let greedy = [tenancy::create(&server, "greedy-1").key, tenancy::create(&server, "greedy-2").key];
    for key in &greedy {
        server.deploy_as(key, "w", "stepwell_noop").await;
        for number in 0..50 {
            let trigger = json!({ "kind": "event", "event": "e", "workflow": "w", "filter": endless });
            set_up_as(&server, key, &format!("/v1/triggers/t-{number}"), trigger).await;
        }
    }
    set_up(&server, "/v1/triggers/t", json!({ "kind": "event", "event": "e", "workflow": "w", "filter": ".data > 1" }))
        .await;
    let send = |key: &str, data: u32| {
        let request = server.request_as(key, Method::POST, "/v1/events").json(&json!({ "name": "e", "data": data }));
        async move { request.send().await.unwrap().json::<Value>().await.unwrap() }
    };
    let under_way: Vec<_> = greedy.iter().flat_map(|key| (0..4).map(|data| tokio::spawn(send(key, data)))).collect();
    for data in [1, 2, 3] {
        let sent = send("dev", data).await;
        let outcome = if data > 1 { "started" } else { "filtered" };
        assert_eq!(sent["triggers"][0]["outcome"], outcome, "{sent}");
    }
    assert!(under_way.iter().all(|sending| !sending.is_finished()), "the others are still at their first triggers");
    under_way.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn an_event_that_a_crash_cuts_off_goes_on_with_the_same_id() {
    let mut server = Server::start();
    for workflow in ["first", "last"] {
        server.deploy(workflow, "stepwell_noop").await;
    }
    let on = |workflow: &str| json!({ "kind": "event", "event": "e", "workflow": workflow });
    set_up(&server, "/v1/triggers/a", on("first")).await;
    for number in 0..20 {
        let mut endless = on("first");
        endless["filter"] = json!("reduce range(1e15) as $i (0; . + 1)");
        set_up(&server, &format!("/v1/triggers/b-{number}"), endless).await;
    }
    set_up(&server, "/v1/triggers/c", on("last")).await;
    let event = json!({ "name": "e", "id": "once", "data": 7 });
    let sending = tokio::spawn(server.request(Method::POST, "/v1/events").json(&event).send());
    eventually("the first run", || async { (inputs(&server, "first").await.len() == 1).then_some(()) }).await;
    server.crash();
    assert!(sending.await.unwrap().is_err(), "it was cut off");
    assert_eq!(inputs(&server, "last").await, Vec::<Value>::new());

    let send = |event: Value| {
        let request = server.request(Method::POST, "/v1/events").json(&event);
        async move { request.send().await.unwrap() }
    };
    let other = send(json!({ "name": "e", "id": "once", "data": 8 })).await;
    assert_eq!(problem(other).await, (422, "idempotency_mismatch".to_owned()), "another event, begun or not");
    let sent = send(event.clone()).await;
    assert!(sent.headers().get("idempotent-replayed").is_none());
    let sent: Value = sent.json().await.unwrap();
    let outcomes: Vec<&str> =
        sent["triggers"].as_array().unwrap().iter().map(|acted| acted["outcome"].as_str().unwrap()).collect();
    assert_eq!((outcomes.len(), outcomes[0], outcomes[21]), (22, "started", "started"), "{sent}");
    assert!(outcomes[1..21].iter().all(|outcome| *outcome == "failed"), "{sent}");
    assert_eq!((inputs(&server, "first").await, inputs(&server, "last").await), (vec![json!(7)], vec![json!(7)]));
    let again = send(event).await;
    assert_eq!(again.headers()["idempotent-replayed"], "true");
    assert_eq!(again.json::<Value>().await.unwrap(), sent);
}

#[tokio::test]
async fn an_event_has_fifty_triggers_however_many_are_set_up_at_once() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    let trigger = json!({ "kind": "event", "event": "e", "workflow": "w" });
    let paths: Vec<String> = (0..60).map(|number| format!("/v1/triggers/t-{number}")).collect();
    let answers = join_all(paths.iter().map(|path| put(&server, path, trigger.clone()))).await;
    let mut refused = 0;
    for answer in answers {
        if answer.status() != StatusCode::OK {
            assert_eq!(problem(answer).await, (422, "too_many".to_owned()));
            refused += 1;
        }
    }
    assert_eq!(refused, 10);
    let mut names = Vec::new();
    let mut next = "/v1/triggers?limit=20".to_owned();
    loop {
        let page = server.get(&next).await;
        names.extend(
            page["data"].as_array().unwrap().iter().map(|trigger| trigger["name"].as_str().unwrap().to_owned()),
        );
        let Some(cursor) = page["page"]["cursor"].as_str() else { break };
        assert_eq!((&page["page"]["has_more"], page["data"].as_array().unwrap().len()), (&json!(true), 20));
        next = format!("/v1/triggers?limit=20&cursor={cursor}");
    }
    assert_eq!((names.len(), names.is_sorted()), (50, true));
    assert_eq!(server.cli(&["triggers"]).stdout.lines().count(), 50);

    // One that waits for something else makes room, and one that is changed keeps its own.
    let other = json!({ "kind": "event", "event": "other", "workflow": "w" });
    set_up(&server, &format!("/v1/triggers/{}", names[0]), other).await;
    set_up(&server, &format!("/v1/triggers/{}", names[1]), trigger.clone()).await;
    set_up(&server, "/v1/triggers/new", trigger.clone()).await;
    assert_eq!(problem(put(&server, "/v1/triggers/newer", trigger).await).await, (422, "too_many".to_owned()));
    let sent = server.request(Method::POST, "/v1/events").json(&json!({ "name": "e" })).send().await.unwrap();
    let sent: Value = sent.json().await.unwrap();
    assert_eq!(sent["triggers"].as_array().unwrap().len(), 50, "{sent}");
    assert_eq!(inputs(&server, "w").await.len(), 50);
}

#[tokio::test]
async fn a_trigger_that_is_deleted_or_disabled_starts_nothing_more() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    let mut trigger = json!({ "kind": "cron", "workflow": "w", "schedule": "* * * * * *" });
    for off in ["disable", "delete"] {
        trigger["enabled"] = json!(true);
        set_up(&server, "/v1/triggers/t", trigger.clone()).await;
        let before = fired(&server, "w").await.len();
        eventually("a run", || async { (fired(&server, "w").await.len() > before).then_some(()) }).await;
        if off == "disable" {
            trigger["enabled"] = json!(false);
            set_up(&server, "/v1/triggers/t", trigger.clone()).await;
        } else {
            let deleted = server.request(Method::DELETE, "/v1/triggers/t").send().await.unwrap();
            assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
        }
        let after = fired(&server, "w").await;
        // Another trigger's run says that the host has gone on.
        server.deploy(off, "stepwell_noop").await;
        let other = json!({ "kind": "cron", "workflow": off, "schedule": "* * * * * *" });
        set_up(&server, &format!("/v1/triggers/{off}"), other).await;
        eventually("other runs", || async { (fired(&server, off).await.len() >= 2).then_some(()) }).await;
        assert_eq!(fired(&server, "w").await, after, "{off}");
    }
}
