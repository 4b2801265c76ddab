//! The query of `GET /v1/token`, taken apart by hand: no allocation for what needs none.
//!
//! `+` is a space, as every library that encodes forms has it. Nothing is guessed: what is unknown,
//! given twice or empty is an error that says what to change.

use std::borrow::Cow;

use base64::{
    Engine,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use super::problem::Problem;
use crate::id::Scope;

/// What `GET /v1/token` asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TokenQuery<'a> {
    /// `resource` or `scope`.
    pub(super) scope: Scope,
    /// `identity`, where it is given.
    pub(super) identity: Option<Cow<'a, str>>,
    /// `claims`, decoded, where it is given.
    pub(super) claims: Option<String>,
}

impl<'a> TokenQuery<'a> {
    pub(super) fn parse(query: &'a str) -> Result<Self, Problem> {
        let [resource, scope, identity, claims] =
            parameters(query, ["resource", "scope", "identity", "claims"])?;
        let scope = match (resource, scope) {
            (Some(resource), None) => Scope::from_resource(&resource),
            (None, Some(scope)) => Scope::from_scope(&scope),
            (Some(_), Some(_)) => {
                return Err(Problem::malformed(
                    "conflicting-parameters",
                    "both `resource` and `scope` are given",
                    "give one of the two: resource=https://vault.azure.net and \
                     scope=https://vault.azure.net/.default mean the same",
                ));
            }
            (None, None) => {
                return Err(Problem::malformed(
                    "missing-parameter",
                    "neither `resource` nor `scope` is given",
                    "say what the token is for: /v1/token?resource=https://vault.azure.net",
                ));
            }
        };
        Ok(Self {
            scope: scope.map_err(malformed_resource)?,
            identity,
            claims: claims.map(|text| decode_claims(&text)).transpose()?,
        })
    }
}

/// The one parameter of a route that is about an identity.
pub(super) fn identity_of(query: &str) -> Result<Cow<'_, str>, Problem> {
    let [identity] = parameters(query, ["identity"])?;
    identity.ok_or_else(|| {
        Problem::malformed(
            "missing-parameter",
            "`identity` is not given",
            "name one: /v1/refresh?identity=NAME",
        )
    })
}

/// For routes without parameters.
pub(super) fn none(query: &str) -> Result<(), Problem> {
    let [] = parameters(query, [])?;
    Ok(())
}

/// A resource or scope that is none.
pub(super) fn malformed_resource(detail: String) -> Problem {
    Problem::malformed(
        "malformed-resource",
        detail,
        "ask for one resource: a URI such as https://vault.azure.net, api://… or a GUID, or the \
         scope that is the resource followed by /.default",
    )
}

/// Decodes a claims challenge: base64url of a JSON object, as resources send it in
/// `WWW-Authenticate`. Some send the classic alphabet or leave the padding out.
pub(super) fn decode_claims(text: &str) -> Result<String, Problem> {
    let malformed = |detail: &str| {
        Problem::malformed(
            "malformed-claims",
            detail,
            "pass the value of `claims=` of the resource's WWW-Authenticate header as it is, \
             percent-encoded",
        )
    };
    if text.len() > CLAIMS_LIMIT {
        return Err(malformed("`claims` is longer than 4096 bytes"));
    }
    // A plus that was not encoded has become a space.
    let text = text.replace(' ', "+");
    let bytes = if text.contains(['+', '/']) {
        CLASSIC.decode(text)
    } else {
        URL_SAFE.decode(text)
    };
    let bytes = bytes.map_err(|_not_base64| malformed("`claims` is not base64url"))?;
    let claims =
        String::from_utf8(bytes).map_err(|_not_text| malformed("`claims` holds no JSON"))?;
    match serde_json::from_str::<serde_json::Value>(&claims) {
        Ok(value) if value.is_object() => Ok(claims),
        _ => Err(malformed("`claims` holds no JSON object")),
    }
}

/// Decodes a part of a query.
fn form_decode(text: &str) -> Result<Cow<'_, str>, Problem> {
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        return percent_decode(&spaced).map(|decoded| Cow::Owned(decoded.into_owned()));
    }
    percent_decode(text)
}

/// Decodes `%XX`; borrowed when there is none.
pub(super) fn percent_decode(text: &str) -> Result<Cow<'_, str>, Problem> {
    let Some(first) = text.find('%') else {
        return Ok(Cow::Borrowed(text));
    };
    let malformed = |detail: &str| {
        Problem::malformed(
            "malformed-query",
            detail,
            "percent-encode the UTF-8 bytes of each value; a percent sign itself is %25",
        )
    };
    let (plain, encoded) = text.split_at(first);
    let mut decoded = Vec::with_capacity(text.len());
    decoded.extend_from_slice(plain.as_bytes());
    let mut rest = encoded.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || (rest.next()? as char).to_digit(16);
        let value = digit().zip(digit()).map(|(high, low)| high * 16 + low);
        let byte = value.and_then(|v| u8::try_from(v).ok());
        decoded.push(byte.ok_or_else(|| malformed("a `%` is not followed by two hex digits"))?);
    }
    String::from_utf8(decoded)
        .map(Cow::Owned)
        .map_err(|_not_text| malformed("a value is not UTF-8"))
}

/// Sorts the parameters of a query by name, each at most once and none empty.
fn parameters<'a, const N: usize>(
    query: &'a str,
    names: [&'static str; N],
) -> Result<[Option<Cow<'a, str>>; N], Problem> {
    let mut values = [const { None }; N];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = form_decode(name)?;
        let place = names.iter().position(|known| *known == name);
        let Some((slot, name)) = place.and_then(|p| values.get_mut(p).zip(names.get(p))) else {
            return Err(Problem::malformed(
                "unknown-parameter",
                format!("there is no parameter `{}` here", shown(&name)),
                if names.is_empty() {
                    "leave the query out".into()
                } else {
                    format!("the parameters are: {}", names.join(", "))
                },
            ));
        };
        let value = form_decode(value)?;
        if value.is_empty() {
            return Err(Problem::malformed(
                "empty-parameter",
                format!("`{name}` is empty"),
                format!("give `{name}` a value, or leave it out"),
            ));
        }
        if slot.replace(value).is_some() {
            return Err(Problem::malformed(
                "repeated-parameter",
                format!("`{name}` is given more than once"),
                "give each parameter once; one token is for one resource",
            ));
        }
    }
    Ok(values)
}

/// What a caller sent, made fit for an answer or a log line: short, and without control characters.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    const LIMIT: usize = 128;
    if text.len() <= LIMIT && !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(LIMIT + 4);
    for character in text.chars() {
        if escaped.len() >= LIMIT {
            escaped.push('…');
            break;
        }
        if character.is_control() {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

/// How long `claims` may be, encoded.
const CLAIMS_LIMIT: usize = 4096;

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, LENIENT);
const CLASSIC: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn code(query: &str) -> String {
        TokenQuery::parse(query).unwrap_err().code
    }

    #[test]
    fn a_query_is_taken_apart() {
        let query =
            TokenQuery::parse("resource=https://vault.azure.net&identity=payments").unwrap();
        assert_eq!(query.scope.as_str(), "https://vault.azure.net/.default");
        assert!(matches!(query.identity, Some(Cow::Borrowed("payments"))));
        assert_eq!(query.claims, None);

        let query = TokenQuery::parse(
            "&scope=https%3A%2F%2Fvault.azure.net%2f.default&&identity=a+b%20%C3%BC",
        )
        .unwrap();
        assert_eq!(query.scope.resource(), "https://vault.azure.net");
        assert_eq!(query.identity.as_deref(), Some("a b ü"));
    }

    #[test]
    fn mistakes_are_told_apart() {
        for (query, expected) in [
            ("", "missing-parameter"),
            ("identity=a", "missing-parameter"),
            ("resource=a&scope=a/.default", "conflicting-parameters"),
            ("resource=a&resource=a", "repeated-parameter"),
            ("resource=a&identity=b&identity=b", "repeated-parameter"),
            ("resource=a&tenant=b", "unknown-parameter"),
            ("Resource=a", "unknown-parameter"),
            ("resource", "empty-parameter"),
            ("resource=", "empty-parameter"),
            ("resource=a&identity=", "empty-parameter"),
            ("resource=%", "malformed-query"),
            ("resource=%4", "malformed-query"),
            ("resource=%zz", "malformed-query"),
            ("resource=%+1", "malformed-query"),
            ("resource=%ff", "malformed-query"),
            ("res%zzource=a", "malformed-query"),
            ("resource=a+b", "malformed-resource"),
            ("resource=a%20b", "malformed-resource"),
            (
                "scope=https://graph.microsoft.com/User.Read",
                "malformed-resource",
            ),
            ("resource=a&claims=%25", "malformed-claims"),
        ] {
            assert_eq!(code(query), expected, "{query}");
        }
        let unknown = TokenQuery::parse("resorce=a").unwrap_err();
        assert!(unknown.detail.contains("`resorce`"));
        assert!(unknown.fix.contains("resource, scope, identity, claims"));
    }

    #[test]
    fn claims_are_base64url_of_a_json_object() {
        let json = r#"{"access_token":{"nbf":{"essential":true,"value":"1604106651"}}}"#;
        for engine in [&URL_SAFE, &CLASSIC] {
            let encoded = engine.encode(json);
            assert_eq!(decode_claims(&encoded).unwrap(), json);
            assert_eq!(decode_claims(encoded.trim_end_matches('=')).unwrap(), json);
            let query = format!("resource=a&claims={encoded}");
            assert_eq!(
                TokenQuery::parse(&query).unwrap().claims.as_deref(),
                Some(json)
            );
        }
        // What only one of the two alphabets can spell.
        let json = r#"{"a":"~~~???"}"#;
        assert_eq!(decode_claims(&URL_SAFE.encode(json)).unwrap(), json);
        assert_eq!(decode_claims(&CLASSIC.encode(json)).unwrap(), json);

        let long = URL_SAFE.encode(format!("{{\"a\":\"{}\"}}", "x".repeat(3100)));
        for bad in [
            "!!",
            &URL_SAFE.encode("[1]"),
            &URL_SAFE.encode("{"),
            &URL_SAFE.encode([0xff]),
            &long,
        ] {
            assert_eq!(decode_claims(bad).unwrap_err().code, "malformed-claims");
        }
    }

    #[test]
    fn other_routes_take_their_parameters_only() {
        assert_eq!(identity_of("identity=a").unwrap(), "a");
        assert_eq!(identity_of("").unwrap_err().code, "missing-parameter");
        assert_eq!(
            identity_of("resource=a").unwrap_err().code,
            "unknown-parameter"
        );
        none("").unwrap();
        assert_eq!(none("verbose=1").unwrap_err().code, "unknown-parameter");
    }

    #[test]
    fn what_callers_send_is_shown_short_and_on_one_line() {
        assert_eq!(shown("payments"), "payments");
        assert_eq!(shown("a\r\nb\u{1b}[2J"), r"a\r\nb\u{1b}[2J");
        assert_eq!(shown(&"ü".repeat(500)).chars().count(), 65);
    }

    proptest! {
        #[test]
        fn the_parser_takes_anything(query in "[a-z=&%+/.0-9é]{0,60}") {
            let _ = TokenQuery::parse(&query);
        }

        #[test]
        fn what_is_encoded_is_decoded(value in ".{1,40}") {
            let encoded: String = value.bytes().map(|b| format!("%{b:02x}")).collect();
            prop_assert_eq!(percent_decode(&encoded).unwrap(), value);
        }
    }
}
