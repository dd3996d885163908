//! What a static secret is, as far as its shape and its name tell. In goes nothing; out come the words for it, how much it weighs,
//! and the way of this agent that ends it.

/// What was found.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// A private key in PEM, plain.
    PrivateKey,
    /// The key file of a service account at Google.
    GoogleServiceAccount,
    /// An access key of AWS, by its identifier or its secret half.
    AwsKey,
    /// The key of an Azure account, or a signature made with it.
    AzureKey,
    /// A token of OpenBao or Vault.
    VaultToken,
    /// A secret that an OAuth client shows.
    ClientSecret,
    /// A URL or connection string of a database, with its password.
    DatabaseUrl,
    /// A password of a database.
    DatabasePassword,
    /// A token of GitHub.
    GithubToken,
    /// A token of GitLab.
    GitlabToken,
    /// A token of a package registry (npm, PyPI, RubyGems, a container registry).
    RegistryToken,
    /// What only an API's own shape tells: Slack, Stripe, SendGrid, Google and others.
    VendorKey(&'static str),
    /// An identity of age.
    AgeKey,
    /// A JWT that does not end, or has not ended.
    Jwt,
    /// An entry of a Kubernetes Secret.
    KubernetesSecret,
    /// A URL with a password in it.
    UrlPassword,
    /// A header with a password or a token in it.
    Header,
    /// A password, by its name.
    Password,
    /// A key, by its name and its chance look.
    Key,
    /// A token or another secret, by its name.
    Secret,
}

impl Kind {
    /// What it is, in two or three words.
    pub fn words(self) -> String {
        match self {
            Self::PrivateKey => "private key".into(),
            Self::GoogleServiceAccount => "Google service account key".into(),
            Self::AwsKey => "AWS access key".into(),
            Self::AzureKey => "Azure account key".into(),
            Self::VaultToken => "OpenBao or Vault token".into(),
            Self::ClientSecret => "OAuth client secret".into(),
            Self::DatabaseUrl => "database URL with a password".into(),
            Self::DatabasePassword => "database password".into(),
            Self::GithubToken => "GitHub token".into(),
            Self::GitlabToken => "GitLab token".into(),
            Self::RegistryToken => "package registry token".into(),
            Self::VendorKey(vendor) => format!("{vendor} key"),
            Self::AgeKey => "age identity".into(),
            Self::Jwt => "JWT".into(),
            Self::KubernetesSecret => "Kubernetes Secret in clear".into(),
            Self::UrlPassword => "password in a URL".into(),
            Self::Header => "password or token in a header".into(),
            Self::Password => "password".into(),
            Self::Key => "key".into(),
            Self::Secret => "token or secret".into(),
        }
    }

    /// Its word for machines. These never change their meaning.
    pub fn code(self) -> &'static str {
        match self {
            Self::PrivateKey => "private_key",
            Self::GoogleServiceAccount => "google_service_account",
            Self::AwsKey => "aws_key",
            Self::AzureKey => "azure_key",
            Self::VaultToken => "vault_token",
            Self::ClientSecret => "client_secret",
            Self::DatabaseUrl => "database_url",
            Self::DatabasePassword => "database_password",
            Self::GithubToken => "github_token",
            Self::GitlabToken => "gitlab_token",
            Self::RegistryToken => "registry_token",
            Self::VendorKey(_) => "vendor_key",
            Self::AgeKey => "age_key",
            Self::Jwt => "jwt",
            Self::KubernetesSecret => "kubernetes_secret",
            Self::UrlPassword => "url_password",
            Self::Header => "header",
            Self::Password => "password",
            Self::Key => "key",
            Self::Secret => "secret",
        }
    }

    /// How much hangs on it, the heaviest first (S47): what opens a cloud, a vault or an identity; what opens one service; what only
    /// a name speaks for.
    pub fn weight(self) -> Weight {
        match self {
            Self::PrivateKey
            | Self::GoogleServiceAccount
            | Self::AwsKey
            | Self::AzureKey
            | Self::VaultToken
            | Self::AgeKey => Weight::High,
            Self::ClientSecret
            | Self::DatabaseUrl
            | Self::DatabasePassword
            | Self::GithubToken
            | Self::GitlabToken
            | Self::RegistryToken
            | Self::VendorKey(_)
            | Self::Jwt
            | Self::KubernetesSecret
            | Self::UrlPassword
            | Self::Header => Weight::Middle,
            Self::Password | Self::Key | Self::Secret => Weight::Named,
        }
    }

    /// What takes its place.
    pub fn next(self) -> &'static str {
        match self {
            Self::PrivateKey => {
                "a certificate of a CA, renewed by the agent, its key made here (certificate = { .. }); a key for signing or SSH that \
                 cannot go yet: sealed, with an end date"
            }
            Self::GoogleServiceAccount => {
                "workload identity federation: a token of your issuer in a file, which Google's client exchanges; then delete the key"
            }
            Self::AwsKey => {
                "a role: a token of your issuer in AWS_WEB_IDENTITY_TOKEN_FILE, or IAM Roles Anywhere with a certificate; then delete \
                 the key"
            }
            Self::AzureKey => {
                "a federated credential of Entra ID for a token of your issuer; then turn account keys off"
            }
            Self::VaultToken => {
                "the agent logs in for the program (kind = \"openbao\") and leases what it reads; then revoke the token"
            }
            Self::ClientSecret => {
                "the client proves itself by its key (private_key_jwt): register what keybearer keys export prints, then delete the \
                 secret"
            }
            Self::DatabaseUrl | Self::DatabasePassword => {
                "a user of the database made for each process: a lease (database/creds/ROLE at OpenBao)"
            }
            Self::GithubToken => {
                "a GitHub App's installation token, or in Actions its own GITHUB_TOKEN or OIDC; until then sealed, with an end date"
            }
            Self::GitlabToken => {
                "in pipelines id_tokens (OIDC) or CI_JOB_TOKEN, elsewhere a token that ends soon; until then sealed, with an end date"
            }
            Self::RegistryToken => {
                "trusted publishing (OIDC) from the pipeline; for pulling a read-only token, sealed, with an end date"
            }
            Self::VendorKey(_) => {
                "no dynamic way is known: a key restricted to what the program does, sealed, with an end date"
            }
            Self::AgeKey => "sealed, with an end date; better a key that the host or its TPM holds",
            Self::Jwt => "the agent fetches a token that ends within minutes",
            Self::KubernetesSecret => {
                "have the program fetch it from the agent; what stays, encrypted in the repository (SOPS, sealed-secrets)"
            }
            Self::UrlPassword | Self::Header => {
                "a token by OAuth, fetched by the agent; otherwise sealed, with an end date"
            }
            Self::Password => {
                "a token by OAuth, a lease or a certificate, if the service has one of them; else sealed, with an end date"
            }
            Self::Key | Self::Secret => {
                "a token by OAuth, fetched by the agent, if the service has it; else sealed, with an end date"
            }
        }
    }
}

/// How much hangs on a secret.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Weight {
    /// It opens a cloud, a vault, or is an identity.
    High,
    /// It opens one service, and its shape says so.
    Middle,
    /// Its name says that it is one.
    Named,
}

impl Weight {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Middle => "middle",
            Self::Named => "named",
        }
    }
}
