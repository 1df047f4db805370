//! Who is let in by keys in files, over HTTP, while the files change.

use std::{
    fs,
    path::{Path, PathBuf},
};

use modelprofile_worker::access::{AdminKeys, ApiKeys};
use reqwest::Method;

use crate::signer::{AUDIENCE, Signer};
use crate::support::{Server, Setup, answer};

/// A place that a function without surroundings can name.
fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("access").join(name)
}

async fn ask(server: &Server, token: &str) -> (u16, String) {
    let request = server.client.get(format!("http://{}/admin/v1/state", server.admin)).bearer_auth(token);
    let (status, text) = answer(request).await;
    (status.as_u16(), text)
}

#[tokio::test]
async fn the_admin_api_takes_tokens_of_the_keys_that_its_file_has_now() {
    const FILE: &str = "admin-keys";
    let (first, second) = (Signer::new(1), Signer::new(2));
    fs::create_dir_all(place("")).unwrap();
    fs::write(place(FILE), first.line()).unwrap();
    let server = Server::with(Setup {
        admin_token: None,
        change: |app| app.admin_keys = Some(AdminKeys::of_file(place(FILE), AUDIENCE.to_owned()).unwrap()),
        ..Setup::default()
    })
    .await;
    let token = first.token(AUDIENCE, 60);
    assert_eq!(ask(&server, &token).await.0, 200);
    for (token, sentence) in [
        ("secret".to_owned(), "three parts"),
        (first.token("default/tiny/0f8e-4712", 60), "`aud`"),
        (first.token(AUDIENCE, -60), "`exp` has passed"),
        (first.token(AUDIENCE, 3600), "300 seconds"),
        (second.token(AUDIENCE, 60), "no key of --admin-keys"),
        (format!("{token}x"), "base64url"),
    ] {
        let (status, text) = ask(&server, &token).await;
        assert_eq!(status, 401, "{sentence}: {text}");
        assert!(text.contains(sentence) && !text.contains(&token), "{sentence}: {text}");
    }
    let nothing = server.client.get(format!("http://{}/admin/v1/state", server.admin));
    assert_eq!(answer(nothing).await.1, "send the header Authorization: Bearer TOKEN");
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(answer(server.admin(Method::GET, path)).await.0, 200, "{path}");
    }
    // A rotation: both, then the new one alone.
    let new = second.token(AUDIENCE, 60);
    fs::write(place(FILE), first.line() + &second.line()).unwrap();
    assert_eq!((ask(&server, &token).await.0, ask(&server, &new).await.0), (200, 200));
    fs::write(place(FILE), second.line()).unwrap();
    assert_eq!((ask(&server, &token).await.0, ask(&server, &new).await.0), (401, 200));
    // What cannot be read takes no key away and brings none.
    fs::write(place(FILE), first.line() + "no key").unwrap();
    assert_eq!((ask(&server, &token).await.0, ask(&server, &new).await.0), (401, 200));
    fs::remove_file(place(FILE)).unwrap();
    assert_eq!((ask(&server, &token).await.0, ask(&server, &new).await.0), (401, 200));
}

#[tokio::test]
async fn a_secret_and_signed_tokens_stand_beside_each_other() {
    const FILE: &str = "beside";
    let signer = Signer::new(1);
    fs::create_dir_all(place("")).unwrap();
    fs::write(place(FILE), signer.line()).unwrap();
    let change = |app: &mut modelprofile_worker::app::App| {
        app.admin_keys = Some(AdminKeys::of_file(place(FILE), AUDIENCE.to_owned()).unwrap());
    };
    let server = Server::with(Setup { change, ..Setup::default() }).await;
    assert_eq!(ask(&server, "secret").await.0, 200);
    assert_eq!(ask(&server, &signer.token(AUDIENCE, 60)).await.0, 200);
    assert_eq!(ask(&server, "secretx").await.0, 401);
}

#[tokio::test]
async fn the_api_takes_the_keys_that_its_directory_has_now() {
    const DIRECTORY: &str = "api-keys";
    let _ = fs::remove_dir_all(place(DIRECTORY));
    fs::create_dir_all(place(DIRECTORY)).unwrap();
    let key = |name: &str| place(DIRECTORY).join(name);
    fs::write(key("alice"), "one\n").unwrap();
    let server = Server::with(Setup {
        api_keys: vec!["by-environment".into()],
        change: |app| app.api_key_files = Some(ApiKeys::of_directory(place(DIRECTORY)).unwrap()),
        ..Setup::default()
    })
    .await;
    let status = async |key: &str| answer(server.request(Method::GET, "/v1/models").bearer_auth(key)).await.0.as_u16();
    assert_eq!((status("one").await, status("by-environment").await, status("two").await), (200, 200, 401));
    assert_eq!(server.get("/v1/models").await.0, 401);
    fs::write(key("bob"), "two").unwrap();
    fs::remove_file(key("alice")).unwrap();
    assert_eq!((status("one").await, status("two").await), (401, 200));
    // Without any, those of before stay: nobody else gets in.
    fs::remove_file(key("bob")).unwrap();
    assert_eq!((status("one").await, status("two").await, status("").await), (401, 200, 401));
}
