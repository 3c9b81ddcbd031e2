//! Somebody whom others call when something happened: takes whatever is posted, answers 200 and remembers it.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;

/// What was posted: a path and its JSON.
type Posted = (String, Value);

/// Listens on a port of loopback until dropped.
#[derive(Debug)]
pub struct Webhook {
    port: u16,
    posted: Arc<Mutex<Vec<Posted>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Webhook {
    /// Opens.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn open() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let posted = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&posted);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let kept = Arc::clone(&kept);
                let serves = service_fn(move |request| take(request, Arc::clone(&kept)));
                tokio::spawn(async move {
                    // A caller that breaks off is its own business.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), serves).await;
                });
            }
        });
        Ok(Self { port, posted, task })
    }

    /// The address of a path here.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// What was posted to a path so far.
    pub fn posted(&self, path: &str) -> Vec<Value> {
        let posted = self.posted.lock().unwrap_or_else(PoisonError::into_inner);
        posted.iter().filter(|(to, _)| to == path).map(|(_, what)| what.clone()).collect()
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn take(
    request: Request<Incoming>,
    posted: Arc<Mutex<Vec<Posted>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let what = serde_json::from_slice(&body).unwrap_or(Value::Null);
    posted.lock().unwrap_or_else(PoisonError::into_inner).push((path, what));
    Ok(Response::new(Full::from("ok")))
}
