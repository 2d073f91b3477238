//! One table per function, each a list of what comes and what becomes of it (`None`: it stays as it is); then what holds of
//! any text; then how texts are met that would make a careless search slow.

use proptest::prelude::*;

use super::*;

const JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1g";
const HEX: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b";

/// Every outcome is what it shall be, and stays so.
#[track_caller]
fn check(redact: impl Fn(&str) -> Option<String>, table: &[(&str, Option<&str>)]) {
    let mut wrong = Vec::new();
    for (input, expect) in table {
        let (input, expect) =
            (input.replace("{JWT}", JWT).replace("{HEX}", HEX), expect.map(|expect| expect.to_owned()));
        let outcome = redact(&input);
        if outcome != expect {
            wrong.push(format!("{input}\n   becomes {outcome:?}\n   not     {expect:?}"));
        }
        if let Some(again) = outcome.as_deref().and_then(&redact) {
            wrong.push(format!("{input}\n   becomes {outcome:?}\n   and then {again:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn added(names: &[&str]) -> Names {
    Names::new(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
}

#[test]
fn names_are_secret_whatever_their_case_and_separators() {
    let names = added(&["ssnLast", "Kunden-Nummer", "x", ""]);
    for name in [
        "password",
        "Password",
        "PASSWORD",
        "new_password",
        "passwordConfirmation",
        "user[password]",
        "pass",
        "pwd",
        "passwd",
        "access_token",
        "accessToken",
        "access-token",
        "ACCESSTOKEN",
        "access.token",
        "id token",
        "X-API-Key",
        "api_key",
        "apiKey",
        "Authorization",
        "Proxy-Authorization",
        "Cookie",
        "Set-Cookie",
        "X-CSRF-Token",
        "csrfmiddlewaretoken",
        "X-XSRF-TOKEN",
        "XSRFToken",
        "client_secret",
        "private_key",
        "JSESSIONID",
        "PHPSESSID",
        "connect.sid",
        "sid",
        "pin",
        "userPin",
        "pin1",
        "otp",
        "cvv",
        "cvv2",
        "cardNumber",
        "card[number]",
        "credit_card",
        "ssn",
        "IBAN",
        "jwt",
        "X-Amz-Signature",
        "passwort",
        "mot_de_passe",
        "contraseña",
        "auth",
        "authData",
        "ssn_last",
        "ssnLast4",
        "KundenNummer",
        "kunden.nummer",
        "x",
        "X",
        "x-1",
        "bearer",
        "credentials",
        "stripeToken",
        "mysql_pwd",
        "verification_code",
    ] {
        assert!(names.is_secret(name), "{name}");
    }
    for name in [
        "",
        "-",
        "name",
        "email",
        "author",
        "authority",
        "compass",
        "passenger",
        "spinner",
        "pinned",
        "option",
        "side",
        "signal",
        "tokenizer",
        "max_tokens",
        "token_type",
        "secretary",
        "lessno",
        "max",
        "xy",
        "maxx",
        "key",
        "code",
        "session",
        "cookieConsent",
    ] {
        assert!(!names.is_secret(name), "{name}");
    }
    assert!(!Names::default().is_secret("x"));
}

#[test]
fn texts_lose_their_secrets() {
    let names = added(&["kundennummer"]);
    check(
        |input| text(input, &names),
        &[
            ("", None),
            ("***", None),
            ("Hello, world", None),
            // By shape.
            ("got {JWT} back", Some("got *** back")),
            ("got {JWT}.", Some("got ***.")),
            ("id%3D{JWT}", Some("id%3D***")),
            ("Bearer abc123def", Some("Bearer ***")),
            ("bearer  abcDef.ghi~x", Some("bearer  ***")),
            ("Basic dXNlcjpwYXNz", Some("Basic ***")),
            ("Basic dXNlcjpw==", Some("Basic ***")),
            ("Basic plan", None),
            ("Basic authentication is on", None),
            ("bearer of bad news", None),
            ("Bearer realm=\"app\"", None),
            ("card 4111111111111111 ok", Some("card *** ok")),
            ("card 4111 1111 1111 1111, thanks", Some("card ***, thanks")),
            ("4111-1111-1111-1111", Some("***")),
            ("3782 822463 10005", Some("***")),
            ("378282246310005", Some("***")),
            ("5555555555554444", Some("***")),
            ("6011 1111 1111 1117", Some("***")),
            ("4222222222222", Some("***")),
            ("6304000000000000", Some("***")),
            ("3530111333300000", Some("***")),
            ("41 1111 1111 111111", Some("***")),
            ("on 2024 4111 1111 1111 1111", Some("on 2024 ***")),
            ("card_4111111111111111", Some("card_***")),
            ("4111111111111112", None),
            ("1234567890123452", None),
            ("order 1700000000000", None),
            ("id 41111111111111111111111", None),
            ("0.4111111111111111", None),
            ("a4111111111111111", None),
            ("550e8400-e29b-41d4-a716-446655440000", None),
            ("41111111-1111-1111-1111-111111111111", None),
            ("+49 30 901820, 2024-05-06 12:13:14.567", None),
            ("v1.22.333-beta.4", None),
            ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY----- x", Some("*** x")),
            ("a -----BEGIN PRIVATE KEY-----\\nMIIE", Some("a ***")),
            ("-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----", None),
            ("use AKIAIOSFODNN7EXAMPLE now", Some("use *** now")),
            ("ghp_0123456789abcdefghijABCDEFGHIJ012345", Some("***")),
            ("sk_live_4eC39HqLyjWDarjtT1zdp7dc", Some("***")),
            ("sk-proj-abcdef0123456789abcdef0123", Some("***")),
            ("xoxb-123456789012-abcdefABCDEF", Some("***")),
            ("AIzaSyA1234567890abcdefghijklmnopqrstuv", Some("***")),
            ("SG.abcdefghijklmnopqr1234.abcdefghij-klmnopqrs_tuv", Some("***")),
            ("sk-fading-circle-of-dots-and-lines", None),
            ("AKIA", None),
            // By name.
            ("password=hunter2", Some("password=***")),
            ("password=hunter", Some("password=***")),
            ("password = hunter", Some("password = ***")),
            ("a=1&token=abc&b=2", Some("a=1&token=***&b=2")),
            ("token: abc123, user: bob", Some("token: ***, user: bob")),
            ("(token=abc)", Some("(token=***)")),
            ("password=p,ss;w!rd", Some("password=***")),
            ("Server=db;Password=x;User=bob", Some("Server=db;Password=***;User=bob")),
            ("API key: k123", Some("API key: ***")),
            ("the access key = k", Some("the access key = ***")),
            ("'secret': 'it\\'s'", Some("'secret': '***'")),
            ("{\"password\":\"a\\\"b\",\"n\":1}", Some("{\"password\":\"***\",\"n\":1}")),
            ("{\\\"password\\\":\\\"abc\\\",\\\"n\\\":1}", Some("{\\\"password\\\":\\\"***\\\",\\\"n\\\":1}")),
            ("{\"token\":{\"a\":\"}\",\"b\":[1]},\"n\":1}", Some("{\"token\":***,\"n\":1}")),
            ("{\"token\":12,\"n\":1}", Some("{\"token\":***,\"n\":1}")),
            ("{\"password\":\"open", Some("{\"password\":\"***")),
            ("{token: abc, n: 1}", Some("{token: ***, n: 1}")),
            ("const password = getIt();", Some("const password = ***);")),
            ("user => token => {}", None),
            ("token === null", None),
            ("token: undefined", None),
            ("Auth::user()", None),
            ("kundennummer: 77", Some("kundennummer: ***")),
            ("Kunden-Nummer=77", Some("Kunden-Nummer=***")),
            ("<password>x y</password>", Some("<password>***</password>")),
            ("<ns:token a='1'>x</ns:token>", Some("<ns:token a='1'>***</ns:token>")),
            ("<token><![CDATA[a]]></token>", Some("<token><![CDATA[***]]></token>")),
            ("<p>a</p>", None),
            ("send <token>, or <id>", None),
            ("send it as Authorization: Bearer.", None),
            ("keys of tokens: they change", None),
            ("<input type='password' value='x y'>", Some("<input type='password' value='***'>")),
            ("<input value=abc name=csrf_token>", Some("<input value=*** name=csrf_token>")),
            ("<meta name=\"csrf-token\" content=\"abc==\" />", Some("<meta name=\"csrf-token\" content=\"***\" />")),
            ("<input name='city' value='Rome'><meta name=viewport content='x'>", None),
            ("Authorization: Bearer abc", Some("Authorization: ***")),
            ("Authorization: Digest username=\"x\"", Some("Authorization: ***\"x\"")),
            ("curl -H 'Cookie: a=1; b=2' x", Some("curl -H 'Cookie: ***' x")),
            ("Set-Cookie: a=1; Path=/\nx", Some("Set-Cookie: ***\nx")),
            ("user%5Bpassword%5D=abc", Some("user%5Bpassword%5D=***")),
            ("GET /cb?code=abc&x=1", Some("GET /cb?code=***&x=1")),
            ("x?next=%2Fcb%3Ftoken%3Dabc%26a%3D1", Some("x?next=%2Fcb%3Ftoken%3D***%26a%3D1")),
            ("%7B%22token%22%3A%22a%20b%22%7D", Some("%7B%22token%22%3A%22***%22%7D")),
            ("iban: DE89 3704 0044 0532 0130 00 ok", Some("iban: *** ok")),
            ("Card number: 4111 XXXX XXXX 1111", Some("Card number: ***")),
            ("error code: 42, code=7", None),
            ("PIN: 1234", Some("PIN: ***")),
            // Prose.
            ("Forgot password?", None),
            ("Enter your password", None),
            ("password: must have 8 characters", None),
            ("password: 8 characters", None),
            ("Password: required", None),
            ("invalid token: expired", None),
            ("Tests pass: 12", None),
            ("Cookie: we use them", None),
            ("Token refresh: done", None),
            ("password: hunter", Some("password: ***")),
            ("password: hunter2 was wrong", Some("password: *** was wrong")),
            ("at 12:30: all is well; a:b=c", None),
            ("auth:login done, auth: x", None),
            ("api-key: abc def", Some("api-key: *** def")),
            ("apiKey: abc def", Some("apiKey: *** def")),
            ("API key: see below", None),
            ("credentials: include", None),
            // By place.
            ("see https://bob:pw@host/x", Some("see https://host/x")),
            ("postgres://u:p#s@host/db", Some("postgres://host/db")),
            ("http://localhost:8080/react@18", None),
            ("https://unpkg.com/react@18 and a@b.example", None),
            ("https://a.example/?q=1&access_token=abc#x", Some("https://a.example/?q=1&access_token=***")),
            ("https://hooks.slack.com/services/T0/B0/xyz now", Some("https://hooks.slack.com/services/*** now")),
        ],
    );
}

#[test]
fn urls_of_pages_keep_what_is_harmless() {
    let names = added(&["tab2"]);
    check(
        |input| page_url(input, &names),
        &[
            ("", None),
            ("***", None),
            ("https://app.example/cart", None),
            ("https://bob@app.example/", Some("https://app.example/")),
            ("https://bob:pw@app.example:8080/a", Some("https://app.example:8080/a")),
            ("https:\\\\bob:pw@app.example/a", Some("https:\\\\app.example/a")),
            ("//bob@app.example/a", Some("//app.example/a")),
            ("http:bob@app.example/a", Some("http:app.example/a")),
            ("https://a.example/?page=2&sort=asc&utm_source=x&lang=de-CH", None),
            ("https://a.example/?q=john&page=2", Some("https://a.example/?q=***&page=2")),
            ("?q=john", Some("?q=***")),
            ("/p?a=1;b=2&c", Some("/p?a=***;b=***&***")),
            ("/p?a=1?b=2?page=3", Some("/p?a=***?b=***?page=3")),
            ("/p?a=", None),
            ("/p?", None),
            ("/p?a=***", None),
            ("/p?page", None),
            ("/p?tab=2&tab2=3", Some("/p?tab=2&tab2=***")),
            ("/p?tab={JWT}", Some("/p?tab=***")),
            ("/p?view=a%40b.example", Some("/p?view=***")),
            ("/p?view=%2561%2540b.example", Some("/p?view=***")),
            ("/p?sort=4111+1111+1111+1111", Some("/p?sort=***")),
            ("/p?john@doe.example", Some("/p?***")),
            ("/p?john@doe.example=1", Some("/p?***")),
            ("/p#section", None),
            ("/p#überblick-2", None),
            ("/p#/users/7?tab=x&q=y", Some("/p#/users/7?tab=x&q=***")),
            ("/p#!/users", None),
            ("/p#access_token=abc&page=1", Some("/p#access_token=***&page=1")),
            ("/p#:~:text=hello", Some("/p#:~:text=***")),
            ("/p#john@doe.example", Some("/p#***")),
            ("/p#{JWT}", Some("/p#***")),
            ("/p#a b", Some("/p#***")),
            ("/reset/{JWT}/x", Some("/reset/***/x")),
            ("/reset/{HEX}", Some("/reset/***")),
            ("/u/john@doe.example/x", Some("/u/***/x")),
            ("/u/john%40doe.example/x", Some("/u/***/x")),
            ("/u/550e8400-e29b-41d4-a716-446655440000", None),
            ("/pay/4111111111111111", Some("/pay/***")),
            ("/pay/4111111111111112", None),
            ("/blog/my-trip-to-rome-in-2024-and-what-i-saw", None),
            ("/static/js/main.8c3f5d2e9b1a4c7d8e9f.chunk.js", None),
            ("/npm/react@18.2.0/umd/react.production.min.js", None),
            ("/a;jsessionid=AB12/b;v=1", Some("/a;jsessionid=***/b;v=1")),
            ("/a/token=abc/x", Some("/a/token=***/x")),
            ("/100%/x", None),
            ("data:image/png;base64,iVBORw0KGgo=", None),
            ("data:font/woff2;base64,AAAA", None),
            ("data:text/plain,hello", Some("data:text/plain,***")),
            ("data:text/plain", Some("data:***")),
            ("blob:https://a.example/550e8400-e29b-41d4-a716-446655440000", None),
            ("blob:https://u:p@a.example/x", Some("blob:https://a.example/x")),
            ("javascript:void(0)", None),
            ("java\nscript:alert(1)", Some("java\nscript:***")),
            ("mailto:a@b.example?subject=Hi", Some("mailto:***?subject=***")),
            ("tel:+4930901820", Some("tel:***")),
            ("about:blank", None),
            ("chrome-extension://abc/x.js", None),
        ],
    );
}

#[test]
fn urls_of_links_lose_only_credentials() {
    let names = added(&["kundennummer"]);
    check(
        |input| link_url(input, &names),
        &[
            ("https://a.example/b?q=john&v=9f86d081884c7d659a2feaa0c55ad015#x", None),
            ("https://u:p@a.example/b", Some("https://a.example/b")),
            ("/b?q=john&access_token=abc;def&x=1", Some("/b?q=john&access_token=***;***&x=1")),
            ("/b?kunden_nummer=7", Some("/b?kunden_nummer=***")),
            ("/b?x={JWT}", Some("/b?x=***")),
            ("/b?pass%77ord=x", Some("/b?pass%77ord=***")),
            ("/b?user%5Bpassword%5D=x", Some("/b?user%5Bpassword%5D=***")),
            ("/b?next=%2Fcb%3Ftoken%3Dabc", Some("/b?next=***")),
            ("/b?next=/cb?token=abc", Some("/b?next=/cb?token=***")),
            ("/cb?code=abc&state=x", Some("/cb?code=***&state=***")),
            ("/b#access_token=abc", Some("/b#access_token=***")),
            ("/b#/r?token=abc", Some("/b#/r?token=***")),
            ("/b#top", None),
            ("/a;jsessionid=AB12?x=1", Some("/a;jsessionid=***?x=1")),
            ("/reset/{JWT}", Some("/reset/***")),
            ("/reset/{HEX}", None),
            ("/u/john@doe.example", None),
            ("mailto:a@b.example", None),
            ("data:image/png;base64,iVBORw0KGgo=", None),
            ("javascript:go('x')", None),
            ("#", None),
        ],
    );
}

#[test]
fn urls_below_masked_elements_keep_their_path() {
    check(
        masked_url,
        &[
            ("https://u:p@a.example/b?q=john&page=1#x", Some("https://a.example/b?q=***&page=***#***")),
            ("/b?x", Some("/b?***")),
            ("/b", None),
            ("#x", Some("#***")),
            ("/u/john@doe.example", Some("/u/***")),
            ("mailto:a@b.example", Some("mailto:***")),
            ("data:image/png;base64,iVBO", Some("data:image/png;base64,***")),
            ("data:font/woff2;base64,iVBO", None),
            ("javascript:f(1)", Some("javascript:***")),
        ],
    );
}

#[test]
fn sheets_lose_secrets_of_urls_and_strictly_all_content() {
    let names = Names::default();
    check(
        |input| css(input, false, &names),
        &[
            ("a{background:url(/x.png?v=1)}", None),
            ("a{background:url( '/x.png?token=abc' )}", Some("a{background:url( '/x.png?token=***' )}")),
            ("a{background:URL(/x.png?token=abc)}b{}", Some("a{background:URL(/x.png?token=***)}b{}")),
            ("@import \"https://u:p@a.example/x.css\" print;", Some("@import \"https://a.example/x.css\" print;")),
            ("a{b:image-set(\"x?token=1\" 1x, 'y' 2x)}", Some("a{b:image-set(\"x?token=***\" 1x, 'y' 2x)}")),
            ("a::before{content:'token=abc'}/* it's */", None),
            ("a{b:url(/x\\?token=a\\)b)}", Some("a{b:url(/x?token=***)}")),
            ("a{b:url(data:image/svg+xml;utf8,<svg/>)}", None),
            ("/*url(?token=1)*/a{b:url(?token=1)", Some("/*url(?token=1)*/a{b:url(?token=***)")),
        ],
    );
    check(
        |input| css(input, true, &names),
        &[
            ("a::before{content:'Jane' attr(x)}", Some("a::before{content:'***' attr(x)}")),
            ("a{--x:\"J\\\"ane\";b:\"\"}/* hi */c{}", Some("a{--x:\"***\";b:\"\"}/*****/c{}")),
            ("a{b:url(/x.png?v=1#y)}", Some("a{b:url(/x.png?v=***#***)}")),
            ("a{b:url(\"/x.png\")}", None),
            ("@import '/x.css?u=1';", Some("@import '/x.css?u=***';")),
            ("a{src:url(x) format('woff2')}", None),
            ("a{content:\"open", Some("a{content:\"***")),
            ("/* open", Some("/****")),
            ("color:red;width:calc(100% - (2px + 1px))", None),
        ],
    );
}

#[test]
fn headers_are_masked_by_name_then_by_value() {
    let names = added(&["x-internal-id"]);
    for (name, value, expect) in [
        ("Authorization", "Bearer abc", Some("***")),
        ("cookie", "a=1; b=2", Some("***")),
        ("Set-Cookie", "a=1; Path=/", Some("***")),
        ("Proxy-Authenticate", "Basic", Some("***")),
        ("X-Api-Key", "x", Some("***")),
        ("x-csrf-token", "x", Some("***")),
        ("X-Forwarded-For", "192.0.2.1", Some("***")),
        ("X-Internal-Id", "7", Some("***")),
        ("authorization", "", None),
        ("authorization", "***", None),
        ("Referer", "https://a.example/?q=x", Some("https://a.example/?q=***")),
        ("location", "/login?next=/x", Some("/login?next=***")),
        ("Origin", "https://a.example", None),
        ("content-type", "application/json; charset=utf-8", None),
        ("etag", "\"9f86d081884c7d659a2feaa0c55ad015\"", None),
        ("x-debug", "token=abc", Some("token=***")),
        ("link", "<https://u:p@a.example/>; rel=next", Some("<https://a.example/>; rel=next")),
        ("www-authenticate", "Bearer realm=\"x\"", None),
    ] {
        assert_eq!(header(name, value, &names).as_deref(), expect, "{name}: {value}");
    }
}

#[test]
fn cookies_keep_their_names() {
    check(
        cookies,
        &[
            ("", None),
            ("a=1; b=2", Some("a=***; b=***")),
            ("a=1;b=2;", Some("a=***;b=***;")),
            ("a=b=c", Some("a=***")),
            ("a=", None),
            ("alone", Some("***")),
            ("a=***; b=***", None),
            ("a=\"x;y\"", Some("a=***;***")),
        ],
    );
}

#[test]
fn bodies_are_masked_by_their_form() {
    let names = added(&["kundennummer"]);
    check(
        |input| body(input, &names),
        &[
            ("", None),
            // JSON.
            ("{\"a\":1,\"b\":[true,null,-1.5e3],\"c\":{}}", None),
            ("{\"password\":\"x\", \"a\" : 1}", Some("{\"password\":\"***\", \"a\" : 1}")),
            ("{\"token\" : {\"a\":[1,{}]},\"b\":2}", Some("{\"token\" : \"***\",\"b\":2}")),
            ("{\"tokens\":[\"a\",\"b\"]}", Some("{\"tokens\":\"***\"}")),
            ("{\"token\":12}", Some("{\"token\":\"***\"}")),
            ("{\"token\":true}", Some("{\"token\":\"***\"}")),
            ("{\"token\":null,\"password\":\"\"}", None),
            ("{\"pass\\u0077ord\":\"x\"}", Some("{\"pass\\u0077ord\":\"***\"}")),
            ("{\"Kunden-Nummer\":7}", Some("{\"Kunden-Nummer\":\"***\"}")),
            ("[{\"a\":\"see {JWT}\"}]", Some("[{\"a\":\"see ***\"}]")),
            ("{\"a\":\"x \\u00e4 \\ud83d\\ude00 token=b\\n\"}", Some("{\"a\":\"x ä 😀 token=***\\n\"}")),
            ("{\"a\":4111111111111111,\"b\":4111111111111112}", Some("{\"a\":\"***\",\"b\":4111111111111112}")),
            ("{\"a\":\"{\\\"password\\\":\\\"x\\\"}\"}", Some("{\"a\":\"{\\\"password\\\":\\\"***\\\"}\"}")),
            ("{\"m\":\"password: must have 8 characters\"}", None),
            ("{\"name\":\"password\",\"value\":\"x\"}", Some("{\"name\":\"password\",\"value\":\"***\"}")),
            ("{\"value\":\"x\",\"name\":\"password\"}", Some("{\"value\":\"***\",\"name\":\"password\"}")),
            (
                "{\"value\":{\"a\":[\"x\"]},\"b\":1,\"name\":\"password\"}",
                Some("{\"value\":\"***\",\"b\":1,\"name\":\"password\"}"),
            ),
            ("{\"name\":\"city\",\"value\":\"x\"}", None),
            ("[[\"authorization\",\"abc\"],[\"a\",\"b\"]]", Some("[[\"authorization\",\"***\"],[\"a\",\"b\"]]")),
            ("{\"required\":[\"password\",\"email\"]}", None),
            (")]}',\n{\"token\":1}", Some(")]}',\n{\"token\":\"***\"}")),
            ("{\"token\":1}\n{\"token\":2}\n", Some("{\"token\":\"***\"}\n{\"token\":\"***\"}\n")),
            ("\"token=abc\"", Some("\"token=***\"")),
            // Cut off, or no JSON.
            ("{\"a\":1,\"token\":\"ab", Some("{\"a\":1,\"token\":***")),
            ("{\"a\":1,\"token\":{\"x\":\"y\",\"z", Some("{\"a\":1,\"token\":***")),
            ("{\"password\":\"x\",\"b\":\"and then", Some("{\"password\":\"***\",\"b\":\"and then")),
            ("{'password': 'x'}", Some("{'password': '***'}")),
            ("{password: hunter was here}", Some("{password: *** was here}")),
            ("{\"a\":1} token: abc def", Some("{\"a\":1} token: ***")),
            // Forms.
            ("a=1&password=x%20y&b=2", Some("a=1&password=***&b=2")),
            ("user%5Bpassword%5D=x;y&b=2", Some("user%5Bpassword%5D=***;***&b=2")),
            ("q=john+doe&note=token%3Dabc", Some("q=john+doe&note=***")),
            ("card=4111+1111+1111+1111", Some("card=***")),
            ("p=%7B%22password%22%3A%22x%22%7D&a=1", Some("p=***&a=1")),
            ("code=abc&grant_type=authorization_code", Some("code=***&grant_type=authorization_code")),
            // Multipart.
            (
                "--x1\r\nContent-Disposition: form-data; name=\"password\"\r\n\r\nhunter\r\n--x1\r\nContent-Disposition: form-data; name=\"city\"\r\n\r\nRome\r\n--x1--\r\n",
                Some(
                    "--x1\r\nContent-Disposition: form-data; name=\"password\"\r\n\r\n***\r\n--x1\r\nContent-Disposition: form-data; name=\"city\"\r\n\r\nRome\r\n--x1--\r\n",
                ),
            ),
            (
                "--x1\nContent-Disposition: form-data; filename=\"a\"; name=json\n\n{\"token\":1}\n--x1--",
                Some("--x1\nContent-Disposition: form-data; filename=\"a\"; name=json\n\n{\"token\":\"***\"}\n--x1--"),
            ),
            // Any text.
            ("user: bob\r\npassword: correct horse", Some("user: bob\r\npassword: ***")),
            ("<a><password>x</password></a>", Some("<a><password>***</password></a>")),
            ("<a><password>x", Some("<a><password>***")),
            ("a=1\r\npassword=hun ter\r\n", Some("a=1\r\npassword=***\r\n")),
            ("{\"a\":\"\\\"password\\\":\\\"x\\\"\"}", Some("{\"a\":\"\\\"password\\\":\\\"***\\\"\"}")),
            (
                "<a data-x='{&quot;token&quot;:&quot;x&quot;}'>",
                Some("<a data-x='{&quot;token&quot;:&quot;***&quot;}'>"),
            ),
            ("data: {\"token\":\"x\"}\n\n", Some("data: {\"token\":\"***\"}\n\n")),
            ("mutation { login(password: \"x\") { id } }", Some("mutation { login(password: \"***\") { id } }")),
        ],
    );
}

/// What lies too deep for the scanner of JSON is masked all the same.
#[test]
fn deep_json_is_masked_by_name() {
    let names = Names::default();
    let nest = |inner: &str, depth: usize| format!("{}{inner}{}", "{\"a\":[".repeat(depth), "]}".repeat(depth));
    for depth in [1, 100, 127, 128, 129, 1000] {
        let masked = body(&nest("{\"b\":1,\"password\":\"Zebra\"}", depth), &names).expect("masked");
        assert!(!masked.contains("Zebra") && masked.contains("\"b\":1"), "{depth}");
        let masked = body(&format!("{{\"password\":{}}}", nest("\"Zebra\"", depth)), &names).expect("masked");
        assert!(!masked.contains("Zebra"), "{depth}");
        assert_eq!(body(&nest("1", depth), &names), None, "{depth}");
    }
    let quote = |text: String| serde_json::to_string(&text).expect("a string");
    let nested = (0..6).fold("{\"password\":\"Zebra\"}".to_owned(), |text, _| quote(text));
    let masked = body(&nested, &names).expect("masked");
    assert!(!masked.contains("Zebra"), "{masked}");
}

/// All functions, so that what must hold of each is said once.
fn all(input: &str, names: &Names) -> Vec<(&'static str, Option<String>)> {
    vec![
        ("text", text(input, names)),
        ("page_url", page_url(input, names)),
        ("link_url", link_url(input, names)),
        ("masked_url", masked_url(input)),
        ("css", css(input, false, names)),
        ("strict css", css(input, true, names)),
        ("secret header", header("authorization", input, names)),
        ("url header", header("referer", input, names)),
        ("header", header("x-debug", input, names)),
        ("cookies", cookies(input)),
        ("body", body(input, names)),
    ]
}

/// Texts of pieces that mean something to some finder, and of anything else.
fn texts() -> impl Strategy<Value = String> {
    let pieces = [
        "password",
        "token",
        "Token: ",
        "auth",
        "code",
        "pin",
        "Cookie: ",
        "Authorization: ",
        "Bearer ",
        "Basic ",
        "abcDEF123",
        "hunter",
        "=",
        ":",
        ": ",
        "=>",
        "&",
        ";",
        "?",
        "#",
        "/",
        "//",
        "://",
        "@",
        "%",
        "%25",
        "%3D",
        "%40",
        "%2F",
        "+",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\"",
        "'",
        "`",
        "\\",
        "\\\"",
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        "<",
        ">",
        "</",
        "<token>",
        "<![CDATA[",
        "]]>",
        ",",
        ".",
        "-",
        "_",
        "*",
        "***",
        "eyJ",
        "eyJhbGciOiJIUzI1NiJ9.",
        "-----BEGIN PRIVATE KEY-----",
        "-----END PRIVATE KEY-----",
        "4111",
        "4111111111111111",
        "4",
        "1 1",
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_",
        "sk-",
        "xoxb-1234567890",
        "https://",
        "http:",
        "javascript:",
        "data:",
        "data:image/png,",
        "mailto:",
        "blob:",
        "a@b.example",
        "url(",
        "@import ",
        "/*",
        "*/",
        "format(",
        "content:",
        "{\"",
        "\":\"",
        "\",\"",
        "\":",
        "null",
        "true",
        "1",
        "\"name\":\"password\",\"value\":",
        "\\u0022",
        "\\ud83d",
        "--x1\r\n",
        "Content-Disposition: form-data; name=\"token\"\r\n\r\n",
        "9f86d081884c7d659a2feaa0c55ad015",
        "550e8400-e29b-41d4-a716-446655440000",
        "é",
        "日本",
        "\u{feff}",
        "x",
        "page",
        "utm_source",
    ];
    let piece = prop_oneof![6 => proptest::sample::select(pieces.to_vec()).prop_map(str::to_owned), 1 => ".{0,6}"];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Nothing panics; what is masked stays as it is, says no more than what came, and is not much longer.
    #[test]
    fn whatever_comes_comes_to_rest(input in texts(), rest in any::<String>()) {
        let names = added(&["hunter", "x"]);
        for input in [&input, &rest] {
            for (at, (function, outcome)) in all(input, &names).into_iter().enumerate() {
                let Some(outcome) = outcome else { continue };
                prop_assert_ne!(&outcome, input, "{}", function);
                prop_assert!(outcome.len() <= 2 * input.len() + MASK.len(), "{}: {}", function, outcome);
                let again = &all(&outcome, &names)[at].1;
                prop_assert!(again.is_none(), "{}: {:?} becomes {:?} and then {:?}", function, input, outcome, again);
            }
        }
    }

    /// More names mask more: a secret that is found without them is found with them.
    #[test]
    fn more_names_reveal_nothing(before in texts(), after in texts(), more in proptest::collection::vec("[a-z]{1,4}|hunter|page|url", 0..3)) {
        let (few, many) = (Names::default(), Names::new(&more));
        for secret in ["4111111111111111", JWT, "AKIAIOSFODNN7EXAMPLE", "token=Zebra77"] {
            let input = format!("{before}{secret}{after}");
            let marker = secret.rsplit('=').next().unwrap_or_default();
            for ((function, with_few), (_, with_many)) in all(&input, &few).into_iter().zip(all(&input, &many)) {
                let kept = with_many.unwrap_or_else(|| input.clone());
                if with_few.is_some_and(|masked| !masked.contains(marker)) {
                    prop_assert!(!kept.contains(marker), "{}: {:?} becomes {:?} with {:?}", function, input, kept, more);
                }
            }
        }
    }

    /// Any valid JSON stays valid, and its shape stays but below secret names.
    #[test]
    fn json_stays_json(keys in proptest::collection::vec(texts(), 1..4), values in proptest::collection::vec(texts(), 4)) {
        let members = keys.iter().zip(&values).map(|(key, value)| (key.clone(), serde_json::json!([value, {"n": value}])));
        let input = serde_json::Value::Object(members.collect()).to_string();
        let outcome = body(&input, &Names::default()).unwrap_or(input);
        if outcome != MASK {
            prop_assert!(serde_json::from_str::<serde_json::Value>(&outcome).is_ok(), "{}", outcome);
        }
    }

    /// Whatever the value, a header, a cookie, a field, or a parameter of a secret name does not show it.
    #[test]
    fn values_of_secret_names_never_show(value in "[A-Za-z0-9!$()*,./:;@^|~-]{0,12}Zebra[A-Za-z0-9!$()*,./:;@^|~-]{0,12}", quote: bool) {
        let names = Names::default();
        let quoted = serde_json::to_string(&value).unwrap_or_default();
        let encoded = value.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
        for outcome in [
            header("x-api-key", &value, &names),
            cookies(&format!("a=b; sid={}", value.replace(';', ""))),
            body(&format!("{{\"a\":1,\"password\":{quoted},\"b\":2}}"), &names),
            body(&format!("a=1&password={encoded}&b=2"), &names),
            body(&format!("{{\"a\":1,\"password\":{}", &quoted[..quoted.len() - usize::from(quote)]), &names),
            page_url(&format!("/p?password={encoded}#x"), &names),
            link_url(&format!("/p?password={encoded}#x"), &names),
            text(&format!("x {{\"password\": {quoted}}} y"), &names),
        ] {
            let outcome = outcome.expect("changed");
            prop_assert!(!outcome.contains("Zebra") && !outcome.contains("%5A%65"), "{}", outcome);
        }
    }
}

/// Goal: no text makes a search slow. Method: a MiB of what each finder could be tempted to look through again and again; a
/// search whose time grows with the square would take minutes for each. What comes out is looked at, not the time.
#[test]
fn a_mebibyte_of_temptations_is_searched_in_linear_time() {
    let names = Names::default();
    for piece in [
        "Bearer ",
        "bearer+",
        "Basic Basic",
        "eyJ",
        "eyJhbGciOiJI",
        "eyJhbGciOiJI.",
        "4",
        "4 ",
        "4111 ",
        "4111-1111-1111-1112-",
        "http://a@b@c@",
        "a@",
        "://",
        "http://a:b",
        "%25",
        "%2525%",
        "+",
        "(",
        "((((",
        "{\"a\":",
        "{\"token\":",
        "token:{",
        "token:[\"",
        "token=",
        "token='",
        "token=\"'`",
        "token=\\\"",
        "token=\"\\",
        "token=   ",
        "token:&quot;",
        "token%3D",
        "token%3d%2",
        "&quot;",
        "token: 1A ",
        "token=,",
        "token=)",
        "password: a ",
        "<token>",
        "<token",
        "<token><![CDATA[",
        ">",
        ">>=",
        "=",
        ":",
        "&",
        ";",
        "?",
        "#",
        "/",
        "//",
        "\\",
        "\"",
        "'",
        "url(",
        "url('",
        "/*",
        "*/",
        "@import '",
        "@import",
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN ",
        "-----BEGIN PRIVATE KEY----------END",
        "--",
        "--x\n",
        "--x\n\n",
        "ghp_",
        "sk-1",
        "sk-1a-",
        "AKIA",
        "cookie: a=b ",
        "authorization: basic ",
        "a-",
        "a.",
        "[\"",
        "[[",
        "{\"name\":\"pin\",",
        "\"\\u",
        " ",
        "\n",
        "é",
        "name=",
        "; ",
        "a=1&",
        "data:",
        "blob:",
        "***",
    ] {
        let input = piece.repeat((1 << 20) / piece.len());
        for (function, outcome) in [
            ("text", text(&input, &names)),
            ("page_url", page_url(&input, &names)),
            ("link_url", link_url(&input, &names)),
            ("css", css(&input, true, &names)),
            ("body", body(&input, &names)),
            ("body of JSON", body(&format!("[\"{input}"), &names)),
            ("form", body(&format!("a={input}"), &names)),
        ] {
            let outcome = outcome.unwrap_or_else(|| input.clone());
            assert!(outcome.len() <= 2 * input.len() + MASK.len(), "{function}: {piece}");
            assert!(!outcome.contains("4111-1111-1111-1111"), "{function}: {piece}");
        }
    }
}
