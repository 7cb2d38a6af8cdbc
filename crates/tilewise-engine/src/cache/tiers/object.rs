//! Values as objects: in S3 and what speaks its protocol, or in a folder that others mount.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig};
use tokio::runtime::Runtime;
use url::Url;

use super::{CacheTier, Source, TierError, Value, regular};
use crate::cache::keys::ChunkKey;
use crate::{Error, Result};

/// An object store, which evicts by its own rules.
///
/// Its client is asynchronous, on a runtime of this tier that runs only while the tier is asked for something.
pub struct ObjectTier {
    store: Arc<dyn ObjectStore>,
    /// Where objects are files.
    files: Option<Arc<LocalFileSystem>>,
    /// Taken by the end of the tier alone.
    runtime: Option<Runtime>,
    timeout: Duration,
    /// What an error means: a bucket is away for all keys, a folder refuses one.
    failure: fn(String) -> TierError,
}

/// A bucket of S3 or of a store that speaks its protocol.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Bucket {
    /// The bucket's name.
    pub bucket: String,
    /// Its region.
    pub region: String,
    /// `http://` or `https://`, where it is not Amazon's.
    pub endpoint: Option<String>,
    /// Key id and secret; without, the role of the machine.
    pub credentials: Option<(String, String)>,
}

impl std::fmt::Debug for S3Bucket {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { bucket, region, endpoint, credentials } = self;
        let id = credentials.as_ref().map(|(id, _)| id);
        write!(f, "S3Bucket({bucket} in {region} at {endpoint:?} as {id:?})")
    }
}

impl S3Bucket {
    /// Checks all of it, since the client panics on what requests cannot carry; returns the endpoint.
    fn checked_endpoint(&self) -> Result<Option<Url>> {
        let is_name = |name: &str| {
            let good = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            !name.is_empty() && name.len() <= 63 && name.chars().all(good)
        };
        let expected = "from 1 to 63 letters, digits, dots, hyphens and underscores";
        for (what, name) in [("S3 bucket", &self.bucket), ("S3 region", &self.region)] {
            if !is_name(name) {
                return Err(Error::value(what, expected, format!("{name:?}")));
            }
        }
        if let Some((id, secret)) = &self.credentials
            && ![id, secret].iter().all(|text| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic()))
        {
            return Err(Error::value("S3 credentials", "printable ASCII without spaces", "something else"));
        }
        let Some(endpoint) = &self.endpoint else { return Ok(None) };
        let url = Url::parse(endpoint).ok().filter(|url| {
            let plain = url.username().is_empty() && url.password().is_none();
            ["http", "https"].contains(&url.scheme()) && url.has_host() && plain && url.query().is_none()
        });
        url.map(Some).ok_or_else(|| Error::value("S3 endpoint", "http[s]://host[:port]", "something else"))
    }
}

impl ObjectTier {
    /// Objects in a bucket. Each operation may take up to `timeout`.
    ///
    /// # Errors
    /// [`Error::Value`] for a name, an address or credentials that requests cannot carry, and for no time at all. Whether
    /// the bucket exists is not asked.
    pub fn s3(bucket: &S3Bucket, timeout: Duration) -> Result<Self> {
        let endpoint = bucket.checked_endpoint()?;
        let plain = endpoint.as_ref().is_some_and(|endpoint| endpoint.scheme() == "http");
        // A tier that fails is left alone and asked again later; retries here would only hold up the others.
        let retry = RetryConfig { max_retries: 0, retry_timeout: timeout, ..RetryConfig::default() };
        let options =
            ClientOptions::new().with_timeout(timeout).with_connect_timeout(timeout).with_allow_http(plain);
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&bucket.bucket)
            .with_region(&bucket.region)
            .with_retry(retry)
            .with_client_options(options);
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/'));
        }
        if let Some((id, secret)) = &bucket.credentials {
            builder = builder.with_access_key_id(id).with_secret_access_key(secret);
        }
        let store = builder.build().map_err(|error| Error::value("S3 bucket", "one that exists", error))?;
        Self::new(Arc::new(store), None, timeout, TierError::Unavailable)
    }

    /// Objects as files of a folder, which must exist. Each operation may take up to `timeout`.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, [`Error::Value`] for no time at all.
    pub fn folder(folder: &Path, timeout: Duration) -> Result<Self> {
        let store = LocalFileSystem::new_with_prefix(folder)
            .map_err(|error| Error::file(folder.display().to_string(), error))?;
        let store = Arc::new(store);
        Self::new(store.clone(), Some(store), timeout, TierError::Refused)
    }

    fn new(
        store: Arc<dyn ObjectStore>,
        files: Option<Arc<LocalFileSystem>>,
        timeout: Duration,
        failure: fn(String) -> TierError,
    ) -> Result<Self> {
        if timeout.is_zero() {
            return Err(Error::value("object store timeout", "above 0", "0"));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime
            .map_err(|error| Error::unsupported("an object store on this system", error.to_string()))?;
        Ok(Self { store, files, runtime: Some(runtime), timeout, failure })
    }

    /// Whether a path may be read: where objects are files, nothing else in a file's place.
    fn may_read(&self, path: &ObjectPath) -> Result<bool, TierError> {
        let Some(files) = &self.files else { return Ok(true) };
        let path = files.path_to_filesystem(path).map_err(|error| TierError::Refused(error.to_string()))?;
        // A mount whose server is gone does not answer: that is waited for as long as for anything else.
        let opened = self.run(async {
            let opened = tokio::task::spawn_blocking(move || regular::open(&path)).await?;
            opened.map_err(|error| object_store::Error::Generic { store: "folder", source: Box::new(error) })
        })?;
        Ok(opened.flatten().is_some())
    }

    /// Runs an operation to its end or to the limit of its time; `None` if there is no such object.
    fn run<T>(
        &self,
        operation: impl Future<Output = object_store::Result<T>>,
    ) -> Result<Option<T>, TierError> {
        let limited = async { tokio::time::timeout(self.timeout, operation).await };
        let Some(runtime) = &self.runtime else {
            return Err(TierError::Unavailable("the tier is at its end".to_owned()));
        };
        match runtime.block_on(limited) {
            Err(_) => Err(TierError::Unavailable(format!("no answer in {:?}", self.timeout))),
            Ok(Ok(answer)) => Ok(Some(answer)),
            Ok(Err(object_store::Error::NotFound { .. })) => Ok(None),
            Ok(Err(error)) => Err((self.failure)(error.to_string())),
        }
    }
}

impl Drop for ObjectTier {
    /// Does not wait for what did not answer in time.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Namespace and name, each one part of the path whatever is in it.
fn path(key: &ChunkKey) -> ObjectPath {
    ObjectPath::from_iter([key.namespace().to_string(), key.name().to_owned()])
}

impl CacheTier for ObjectTier {
    fn source(&self) -> Source {
        Source::Object
    }

    fn store(&mut self, key: &ChunkKey, value: &Value) -> Result<(), TierError> {
        let stored = self.run(self.store.put(&path(key), value.as_bytes().to_vec().into()))?;
        stored.map(drop).ok_or_else(|| TierError::Refused("there is no such bucket".to_owned()))
    }

    fn load(&mut self, key: &ChunkKey) -> Result<Option<Value>, TierError> {
        let path = path(key);
        if !self.may_read(&path)? {
            return Ok(None);
        }
        // One that is longer than it may be is read to where that shows.
        let limit = Value::sealed_len(key) as u64 + 1;
        let bytes = self.run(async {
            let mut parts = self.store.get(&path).await?.into_stream();
            let mut bytes = Vec::new();
            while let Some(part) = parts.next().await {
                bytes.extend_from_slice(&part?);
                if bytes.len() as u64 >= limit {
                    break;
                }
            }
            Ok(bytes)
        })?;
        Ok(bytes.map(Value::from_bytes))
    }

    fn contains(&mut self, key: &ChunkKey) -> Result<bool, TierError> {
        let path = path(key);
        match self.files {
            Some(_) => self.may_read(&path),
            None => Ok(self.run(self.store.head(&path))?.is_some()),
        }
    }

    fn remove(&mut self, key: &ChunkKey) -> Result<(), TierError> {
        self.run(self.store.delete(&path(key))).map(drop)
    }
}
