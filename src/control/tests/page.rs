//! The page's files: given to everybody who reaches the API, under a policy that lets nothing but themselves run.

use super::*;

/// Past the description of the API, to which the page does not belong.
fn get(stage: &Stage, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = ureq::http::Request::builder().uri(format!("http://{}{path}", stage.control.admin_addr()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut response = stage.agent.run(request.body(String::new()).unwrap()).unwrap();
    let headers = response.headers().iter();
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    Answer { status: response.status().as_u16(), headers, text: response.body_mut().read_to_string().unwrap() }
}

#[test]
fn its_files_need_no_token_and_run_nothing_but_themselves() {
    let stage = Stage::new(Plan { admin_token: Some("secret"), ..Plan::default() });
    let page = get(&stage, "/", &[]);
    assert_eq!((page.status, page.headers["content-type"].as_str()), (200, "text/html; charset=utf-8"));
    // Every file that it names is there, and it names no other.
    let named = page.text.split(['"', '\'']).filter(|part| part.starts_with("/page/"));
    let named: std::collections::BTreeSet<&str> = named.collect();
    assert_eq!(named.len(), 5);
    for path in named.into_iter().chain(["/"]) {
        let file = get(&stage, path, &[]);
        assert_eq!(file.status, 200, "{path}");
        let policy = &file.headers["content-security-policy"];
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"), "{policy}");
        assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!((&*file.headers["x-content-type-options"], &*file.headers["x-frame-options"]), ("nosniff", "DENY"));
        assert!(!file.text.contains("http://") || path == "/page/icon.svg", "{path} names another server");
    }
    // Nothing within a tag would run: no handler, no style, no script without a file.
    for inline in [" on", "style=", "<script>", "javascript:"] {
        assert!(!page.text.contains(inline), "{inline:?}");
    }
    // What it shows still needs the token.
    assert_eq!(stage.get("/v1/whoami").status, 401);
    assert_eq!(get(&stage, "/page/", &[]).status, 401);
    let right = stage.request("GET", "/v1/whoami", &[("authorization", "Bearer secret")]);
    assert_eq!(right.json(), json!({"name": "admin", "role": "admin"}));
}

#[test]
fn text_becomes_no_markup() {
    let script = include_str!("../api/page/page.js");
    let code: String = script.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", ".style"] {
        assert!(!code.contains(way), "{way}");
    }
    // Without a token whoever reaches the API may do everything, but only under the gateway's own names.
    let stage = Stage::new(Plan::default());
    assert_eq!(stage.get("/v1/whoami").json(), json!({"name": null, "role": "admin"}));
    assert_eq!(get(&stage, "/", &[("host", "evil.example")]).status, 421);
}
