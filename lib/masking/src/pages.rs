//! Which page an event or a question is about: origin and path, and nothing of what may stand beside them.

use schemas::limits::PAGE_URL_BYTES_MAX;

/// Origin and path of a page's URL as `location.href` has it; query, fragment and user info are left out, for they carry
/// personal data. What is longer than [`PAGE_URL_BYTES_MAX`] is cut off between two characters. `None` for what is no page
/// on the web: another scheme, or text that no browser gives.
///
/// Browsers give normal forms: schemes and hosts in lower case, `/` for `\`, no port that goes without saying. Whoever has
/// a URL from elsewhere brings it into that form first.
pub fn origin_and_path(href: &str) -> Option<String> {
    let scheme = ["https://", "http://"].into_iter().find(|scheme| href.starts_with(scheme))?;
    let rest = &href[scheme.len()..];
    let rest = &rest[..rest.find(['?', '#']).unwrap_or(rest.len())];
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    if host.is_empty() || rest.contains(|c: char| c.is_control() || c.is_whitespace() || c == '\\') {
        return None;
    }
    let path = if path.is_empty() { "/" } else { path };
    let mut url = [scheme, host, path].concat();
    url.truncate(url.floor_char_boundary(PAGE_URL_BYTES_MAX));
    Some(url)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_origin_and_path_are_kept() {
        for (href, expect) in [
            ("https://app.example/cart", Some("https://app.example/cart")),
            ("https://app.example", Some("https://app.example/")),
            ("http://app.example:8080/a/b/?token=s#frag", Some("http://app.example:8080/a/b/")),
            ("https://app.example?mail=a@b.example/x", Some("https://app.example/")),
            ("https://app.example#/route?x", Some("https://app.example/")),
            ("https://user:pass@app.example/@me", Some("https://app.example/@me")),
            ("https://a@b@app.example/", Some("https://app.example/")),
            ("https://[::1]:3000/x", Some("https://[::1]:3000/x")),
            ("https://münchen.example/straße", Some("https://münchen.example/straße")),
            ("https://app.example/a;v=1//b", Some("https://app.example/a;v=1//b")),
            ("https://", None),
            ("https:///path", None),
            ("https://user@/path", None),
            ("https://app.example\\@evil.example/", None),
            ("https://app.example/a b", None),
            ("https://app.example/a\nb", None),
            ("https://app.example/\0", None),
            ("about:blank", None),
            ("file:///home/me/secret", None),
            ("data:text/html,https://app.example/", None),
            ("javascript:alert(1)", None),
            ("/cart", None),
            ("", None),
        ] {
            assert_eq!(origin_and_path(href).as_deref(), expect, "{href}");
        }
    }

    #[test]
    fn long_urls_are_cut_between_characters() {
        let cut = |path: &str| origin_and_path(&format!("https://a.example/{path}")).unwrap();
        let room = PAGE_URL_BYTES_MAX - "https://a.example/".len();
        assert_eq!(cut(&"x".repeat(room)).len(), PAGE_URL_BYTES_MAX);
        assert_eq!(cut(&"x".repeat(room + 1)).len(), PAGE_URL_BYTES_MAX);
        let url = cut(&format!("{}ü", "x".repeat(room - 1)));
        assert_eq!((url.len(), url.ends_with('x')), (PAGE_URL_BYTES_MAX - 1, true));
    }

    proptest! {
        /// Whatever comes: what is kept can stand in facts, holds nothing of query or fragment, and is its own page.
        #[test]
        fn what_is_kept_is_a_page_and_no_more(rest in ".{0,600}", https: bool) {
            let href = format!("{}://{rest}", if https { "https" } else { "http" });
            if let Some(url) = origin_and_path(&href) {
                prop_assert!(!url.contains(['?', '#', '\n', '\0', '\\']), "{}", url);
                prop_assert!(url.len() <= PAGE_URL_BYTES_MAX);
                prop_assert_eq!(origin_and_path(&url), Some(url.clone()));
                let urls = schemas::facts::Urls::new([url.as_str()]);
                prop_assert_eq!(urls.iter().collect::<Vec<_>>(), [url.as_str()]);
            }
        }
    }
}
