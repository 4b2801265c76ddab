//! The table of AADSTS codes: HTTP status, `error` and text, with places for names.
//!
//! All of it is facts of the wire. Where a status or an `error` is not known, the row has the one
//! that its neighbours have; 70003, 900561 and 9002313 are known from use, not from a source.

/// One code.
pub(super) struct Row {
    pub(super) code: u32,
    pub(super) status: u16,
    pub(super) error: &'static str,
    /// `{name}` is replaced by the value of that name.
    pub(super) text: &'static str,
}

/// Every code that a check of the lab or a test may answer.
#[rustfmt::skip]
pub(super) const TABLE: &[Row] = &[
    // Tenant and request.
    row(90002, 400, REQUEST, "Tenant '{tenant}' not found. This may happen if there are no active subscriptions for the tenant. Check to make sure you have the correct tenant ID. Check with your subscription administrator."),
    row(900023, 400, REQUEST, "Specified tenant identifier '{tenant}' is neither a valid DNS name, nor a valid external domain."),
    row(900144, 400, REQUEST, "The request body must contain the following parameter: '{parameter}'."),
    row(9001023, 400, REQUEST, "The grant type is not supported over the /common or /consumers endpoints. Please use the tenant-specific endpoint."),
    row(9002313, 400, REQUEST, "Invalid request. Request is malformed or invalid."),
    row(900561, 400, REQUEST, "The endpoint only accepts POST requests. Received a {method} request."),
    row(900439, 400, UNAUTHORIZED, "USGClientNotSupportedOnPublicEndpoint"),
    row(50049, 400, "invalid_instance", "Unknown or invalid instance."),
    row(100007, 400, UNAUTHORIZED, "AAD Regional ONLY supports auth either for MSIs OR for requests from MSAL using SN+I for 1P apps or 3P apps onboarded to regional."),
    row(70003, 400, "unsupported_grant_type", "The app requested an unsupported grant type '{grant}'."),
    // Client.
    row(700016, 400, UNAUTHORIZED, "Application with identifier '{client}' was not found in the directory '{tenant}'. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You may have sent your authentication request to the wrong tenant."),
    row(7000112, 401, UNAUTHORIZED, "Application '{client}'({name}) is disabled."),
    row(7000215, 401, CLIENT, "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '{client}'."),
    row(7000218, 401, CLIENT, "The request body must contain the following parameter: 'client_assertion' or 'client_secret'."),
    row(7000222, 401, CLIENT, "The provided client secret keys for app '{client}' are expired."),
    row(700025, 401, CLIENT, "Client is public so neither 'client_assertion' nor 'client_secret' should be presented."),
    // The assertion.
    row(50027, 400, REQUEST, "JWT token is invalid or malformed."),
    row(5002727, 401, CLIENT, "Invalid JWT header type specified. Allowed types: 'JWT','http://openid.net/specs/jwt/1.0'."),
    row(5002730, 401, CLIENT, "Unsupported key for the signing algorithm."),
    row(5002738, 401, CLIENT, "Invalid JWT token. '{algorithm}' is not a supported signature algorithm. Supported signing algorithms are: 'RS256,RS384,RS512,PS256,PS384,PS512'."),
    // The federated identity credential.
    row(70025, 401, CLIENT, "The client '{client}'({name}) has no configured federated identity credentials."),
    row(70021, 400, REQUEST, "No matching federated identity record found for presented assertion. Assertion Issuer: '{issuer}'. Assertion Subject: '{subject}'. Assertion Audience: '{audience}'. https://docs.microsoft.com/en-us/azure/active-directory/develop/workload-identity-federation"),
    row(700211, 401, CLIENT, "No matching federated identity record found for presented assertion issuer '{issuer}'. Check your federated identity credential Subject, Audience and Issuer against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation"),
    row(700212, 401, CLIENT, "No matching federated identity record found for presented assertion audience '{audience}'. Check your federated identity credential Subject, Audience and Issuer against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation"),
    row(700213, 401, CLIENT, "No matching federated identity record found for presented assertion subject '{subject}'. Check your federated identity credential Subject, Audience and Issuer against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation"),
    row(7002137, 401, CLIENT, "No matching federated identity record found for presented assertion subject '{subject}'. Please make sure the federated identity credential Subject is '{subject}'."),
    row(7002138, 401, CLIENT, "No matching federated identity record found for presented assertion subject '{subject}'. The subject matches with case-insensitive comparison, but not with case-sensitive comparison. https://learn.microsoft.com/entra/identity-platform/reference-breaking-changes#august-2024"),
    row(700214, 401, CLIENT, "The audience of a federated identity credential with an Entra issuer must be 'api://AzureADTokenExchange'."),
    row(700222, 400, REQUEST, "AAD-issued tokens may not be used for federated identity flows."),
    row(700223, 401, CLIENT, "Workload identity federation is disabled by a policy of the tenant."),
    row(700229, 401, CLIENT, "Only app-only tokens can be used as federated identity credential."),
    row(700231, 401, CLIENT, "A token obtained with a federated identity credential cannot be used as one."),
    row(700238, 401, CLIENT, "Workload identity federation with issuer '{issuer}' is blocked by a policy of the tenant."),
    row(700263, 401, CLIENT, "More than one federated identity credential matches subject '{subject}'."),
    row(7002381, 401, CLIENT, "Federated identity credentials issued by '{issuer}' for applications or managed identities registered in this tenant must contain the enterprise claim with value '{name}' but actual value is ''."),
    // The issuer's keys, the signature, the times.
    row(50166, 400, REQUEST, "Request to External OIDC endpoint failed."),
    row(501661, 400, REQUEST, "Request to External OIDC endpoint failed."),
    row(90061, 400, REQUEST, "Request to External OIDC endpoint failed."),
    row(7000272, 401, CLIENT, "The certificate with identifier {kid} used to sign the federated credential could not be found in the metadata of identity provider {issuer}. Please validate that your Identity Provider's metadata exposes the key used to sign the token."),
    row(700027, 401, CLIENT, "Client assertion failed signature validation."),
    row(700024, 401, CLIENT, "Client assertion is not within its valid time range. Current time: {now}, assertion valid from {from}, expiry time of assertion {to}. Review the documentation at https://learn.microsoft.com/entra/identity-platform/certificate-credentials"),
    // Scope and resource.
    row(70011, 400, SCOPE, "The provided request must include a 'scope' input parameter. The provided value for the input parameter 'scope' is not valid. The scope {scope} is not valid."),
    row(700022, 400, SCOPE, "The provided value for the input parameter 'scope' is not valid because it contains more than one resource. Scope {scope} is not valid."),
    row(700023, 400, SCOPE, "The provided value for the input parameter 'scope' is not valid because it contains no resource. Scope {scope} is not valid."),
    row(28002, 400, SCOPE, "Provided value for scope {scope} is not valid for a client credentials request."),
    row(1002012, 400, SCOPE, "The provided value for scope {scope} is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier (application ID URI)."),
    row(500011, 400, "invalid_resource", "The resource principal named {resource} was not found in the tenant named {tenant}. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You might have sent your authentication request to the wrong tenant."),
    // Policy.
    row(53003, 400, "access_denied", "Access has been blocked by Conditional Access policies. The access policy does not allow token issuance."),
    row(50005, 400, "interaction_required", "User tried to log in to a device from a platform that's currently not supported through Conditional Access policy."),
    row(50076, 400, "interaction_required", "Due to a configuration change made by your administrator, or because you moved to a new location, you must use multi-factor authentication to access '{resource}'."),
    row(500341, 400, "invalid_grant", "The user account {client} has been deleted from the {tenant} directory."),
    // What passes.
    row(90055, 429, "temporarily_unavailable", "The tenant is being throttled because of too many requests."),
    row(90006, 503, "server_error", "External error; the service may be temporarily unavailable."),
    row(90012, 503, "temporarily_unavailable", "The request has timed out."),
    row(90024, 503, "temporarily_unavailable", "A transient error has occurred. Please try again."),
    row(90033, 503, "temporarily_unavailable", "A transient error has occurred. Please try again."),
    row(90090, 503, "temporarily_unavailable", "The service is temporarily unavailable."),
    row(50033, 503, "temporarily_unavailable", "A transient error has occurred. Please try again."),
];

/// For codes that are not in the table: a test may force any.
pub(super) const UNKNOWN: Row = row(
    0,
    400,
    REQUEST,
    "The request was refused for a reason without a text in the lab.",
);

const fn row(code: u32, status: u16, error: &'static str, text: &'static str) -> Row {
    Row {
        code,
        status,
        error,
        text,
    }
}

const REQUEST: &str = "invalid_request";
const CLIENT: &str = "invalid_client";
const UNAUTHORIZED: &str = "unauthorized_client";
const SCOPE: &str = "invalid_scope";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_code_is_twice_in_the_table() {
        let mut codes: Vec<_> = TABLE.iter().map(|row| row.code).collect();
        codes.sort_unstable();
        let count = codes.len();
        codes.dedup();
        assert_eq!(codes.len(), count);
    }
}
