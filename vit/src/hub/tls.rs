//! The cryptography of connections.
use rustls::crypto::{ring, CryptoProvider};

/// Makes ring what TLS computes with, where the program has chosen nothing. The default of reqwest, aws-lc, takes minutes to
/// compile.
pub(super) fn provide() {
    if CryptoProvider::get_default().is_none() {
        // Another thread may be ahead; then there is one.
        let _ = ring::default_provider().install_default();
    }
}
