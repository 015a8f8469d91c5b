// Package config reads the service's configuration: one YAML file and, for
// secrets, the environment. It is decoded strictly and checked completely: all
// faults are reported at once.
package config

import (
	"errors"
	"fmt"
	"os"
	"time"

	"go.yaml.in/yaml/v3"

	"cardorder/internal/d1client"
	"cardorder/internal/order"
)

// Config is everything that can be set.
type Config struct {
	// Environment is where orders go: production, staging or development. It must
	// match the hosts of D1: cards are real in production only.
	Environment string `yaml:"environment"`
	// Database is the PostgreSQL (15 or later) that holds everything.
	Database Database `yaml:"database"`
	// Keys protect and recognise what is stored.
	Keys Keys `yaml:"keys"`
	// API is the listener for core banking. Default address :8080.
	API Listener `yaml:"api"`
	// Notifications is the listener for D1: notifications and the token endpoint
	// in front of them. Default address :8081.
	Notifications Listener `yaml:"notifications"`
	// Admin is the listener for /metrics and profiles; keep it private. Default
	// address 127.0.0.1:9090.
	Admin Listener `yaml:"admin"`
	// Log says how much is logged.
	Log Log `yaml:"log"`
	// Clients may call the API.
	Clients []Client `yaml:"clients"`
	// Issuers are the banks whose cards are ordered.
	Issuers []Issuer `yaml:"issuers"`
	// ProgramsFile says what may be ordered, see ProgramsFile the type. It is read
	// again when it changes. Default: none, and all that D1 takes may be ordered.
	ProgramsFile string `yaml:"programsFile"`
}

// Database is how to reach PostgreSQL.
type Database struct {
	// URL of the database. Environment: CARDORDER_DATABASE_URL.
	URL Secret `yaml:"url"`
	// DirectURL reaches PostgreSQL itself where URL leads through a PgBouncer in
	// transaction mode, which can neither hold a session lock nor pass on
	// notifications: migrations and the listener use it. Default: URL.
	// Environment: CARDORDER_DATABASE_DIRECT_URL.
	DirectURL Secret `yaml:"directUrl"`
	// MaxConns is the size of the connection pool. Default 16.
	MaxConns int32 `yaml:"maxConns"`
}

// Keys are the service's own keys; `server keygen` makes them.
type Keys struct {
	// Sealing is a Tink AEAD keyset in JSON. It seals personal data and card data
	// at rest. Keep retired keys in the set for as long as their data is kept.
	// Environment: CARDORDER_SEALING_KEYSET.
	Sealing Secret `yaml:"sealing"`
	// ContentHash is 32 bytes in base64. It keys the hashes by which repeated
	// requests and notifications are recognised; it must never change.
	// Environment: CARDORDER_CONTENT_HASH_KEY.
	ContentHash Secret `yaml:"contentHash"`
	// NotificationTokens sign the tokens that D1 gets from us: the first signs,
	// all are accepted. The same on every replica.
	NotificationTokens []TokenKey `yaml:"notificationTokens"`
}

// TokenKey is one key for the tokens that D1 gets from us.
type TokenKey struct {
	// ID is the kid of the tokens.
	ID string `yaml:"id"`
	// Secret is 32 bytes in base64.
	Secret Secret `yaml:"secret"`
}

// Listener is one address to listen on.
type Listener struct {
	// Listen is host:port.
	Listen string `yaml:"listen"`
	// TLS is left out when a proxy in front speaks TLS.
	TLS *TLS `yaml:"tls"`
}

// TLS is a server's side of TLS 1.2 or 1.3. Its files are read again when they change.
type TLS struct {
	// CertFile and KeyFile are PEM files.
	CertFile string `yaml:"certFile"`
	KeyFile  string `yaml:"keyFile"`
	// ClientCAFile makes client certificates of these authorities (PEM) necessary; on
	// the listener for D1 for the issuers that want one.
	ClientCAFile string `yaml:"clientCaFile"`
}

// Log says how much is logged. Logs are JSON on standard error and hold no content.
type Log struct {
	// Level is debug, info, warn or error. Default info.
	Level string `yaml:"level"`
}

// Client is a system that may call the API with a bearer token.
type Client struct {
	// Name stands in every order's audit trail.
	Name string `yaml:"name"`
	// TokenSHA256 is the SHA-256 of the token in hex; `server keygen` makes
	// both. Tokens are random, so a plain hash protects them.
	TokenSHA256 Secret `yaml:"tokenSha256"`
	// Scopes are of orders:read, orders:write and orders:operate.
	Scopes []string `yaml:"scopes"`
	// Issuers the client may act for.
	Issuers []string `yaml:"issuers"`
}

// Issuer is one bank at D1.
type Issuer struct {
	// ID is D1's issuerId, exactly 10 characters.
	ID string `yaml:"id"`
	// BINs are the first 6 to 8 digits of the issuer's card numbers.
	BINs []string `yaml:"bins"`
	// SensitiveData lets orders carry card data in clear, to be encrypted here.
	// That pulls this process into the scope of PCI DSS. Default false.
	SensitiveData bool `yaml:"sensitiveData"`
	// OnHoldStatuses are the values of details.status that mean "on hold": D1's
	// documentation does not name them. Default none.
	OnHoldStatuses []string `yaml:"onHoldStatuses"`
	// DeliveredStatuses are the carriers' codes (details.shipment.status) of a parcel
	// that was delivered: they differ by carrier. Default none.
	DeliveredStatuses []string `yaml:"deliveredStatuses"`
	// ReturnedStatuses are those of a parcel that comes back. Default none; D1's own
	// CARD_RETURNED is always understood.
	ReturnedStatuses []string `yaml:"returnedStatuses"`
	// DuplicateWindow is for how long after a CREATION was produced another
	// CREATION of the same card is refused. Default 720h (30 days).
	DuplicateWindow time.Duration `yaml:"duplicateWindow"`
	// IndividualAddressRequired makes shipment.individualAddress a must for
	// INDIVIDUAL shipments: D1's documents disagree. Default false.
	IndividualAddressRequired bool `yaml:"individualAddressRequired"`
	// D1 is how to reach the issuer's D1.
	D1 D1 `yaml:"d1"`
	// Sending is how orders are sent.
	Sending Sending `yaml:"sending"`
	// Notifications is how D1 shows us that it is D1.
	Notifications Notifications `yaml:"notifications"`
}

// D1 is the bureau's API for one issuer.
type D1 struct {
	// BaseURL such as https://api.d1.thalescloud.io/banking/v1.
	BaseURL string `yaml:"baseUrl"`
	// TokenURL such as https://api.d1.thalescloud.io/authz/v1/oauth2/token.
	TokenURL string `yaml:"tokenUrl"`
	// Audience of the assertion. Default https://api.d1.thalescloud.io.
	Audience string `yaml:"audience"`
	// AssertionSubject is iss and sub of the assertion: the aggregatorId where one
	// acts for several issuers. Default: the issuer's id.
	AssertionSubject string `yaml:"assertionSubject"`
	// PathStyle is reference or lowercase: D1's documents disagree. Default reference.
	PathStyle string `yaml:"pathStyle"`
	// ChangePath is where changes of an order go, under the card's own path: D1's
	// documents do not say. Default operations:change, in lowercase operations/change.
	ChangePath string `yaml:"changePath"`
	// SigningKey is a P-256 private key in PEM; SigningKeyID its kid at D1.
	SigningKey   Secret `yaml:"signingKey"`
	SigningKeyID string `yaml:"signingKeyId"`
	// ClientCertFile and ClientKeyFile (PEM) are the certificate for mutual TLS.
	// They are read again for every connection, so that a rotated one is used.
	ClientCertFile string `yaml:"clientCertFile"`
	ClientKeyFile  string `yaml:"clientKeyFile"`
	// CAFile (PEM) replaces the system's authorities for D1's certificate.
	CAFile string `yaml:"caFile"`
	// EncryptionKeys are D1's public keys for card data.
	EncryptionKeys []EncryptionKey `yaml:"encryptionKeys"`
	// ServiceUnavailableIsNotTaken takes a 503 for "certainly not taken". Set it
	// only when Thales has confirmed it. Default false.
	ServiceUnavailableIsNotTaken bool `yaml:"serviceUnavailableIsNotTaken"`
}

// EncryptionKey is a public key of D1 for card data.
type EncryptionKey struct {
	// File holds the key as a JWK with its kid.
	File string `yaml:"file"`
	// NotAfter is the last moment of its use, RFC 3339. Default: no end.
	NotAfter time.Time `yaml:"notAfter,omitempty"`
}

// Sending is how orders are brought to D1.
type Sending struct {
	// Concurrency is how many calls to D1 all replicas together have open at
	// once. Default 16.
	Concurrency int `yaml:"concurrency"`
	// RatePerSecond is how many calls to D1 all replicas together begin in a
	// second. Default 0: as many as D1 answers.
	RatePerSecond int `yaml:"ratePerSecond"`
	// CallTimeout is the deadline of one call. Default 30s.
	CallTimeout time.Duration `yaml:"callTimeout"`
	// Poll is how often due messages are looked for when nothing wakes the
	// sender. Default 1s.
	Poll time.Duration `yaml:"poll"`
	// ResendAfter is how long D1 may take to show an order that it accepted.
	// Orders are made exactly once provided that D1 keeps to it, or is
	// idempotent by issuerRequestId. Default 5m.
	ResendAfter time.Duration `yaml:"resendAfter"`
	// AfterUnknown is resend, or wait to never send again what D1 may have.
	// Default resend.
	AfterUnknown string `yaml:"afterUnknown"`
	// Retry404For is for how long a 404 to an order may mean that the card is about
	// to be registered: the order is not rejected before. Default 15m.
	Retry404For time.Duration `yaml:"retry404For"`
	// StopAfterRefusals is how many different orders in a row D1 must refuse as if
	// the set-up were wrong for the lane to stop. Default 5.
	StopAfterRefusals int `yaml:"stopAfterRefusals"`
	// GiveUpAfter is for how long an order is tried, not counting times when the
	// lane was held back. Default 72h.
	GiveUpAfter time.Duration `yaml:"giveUpAfter"`
	// ChangeTimeout is for how long D1 may leave a change of an order unanswered: it
	// expires then, with attention. Default 72h.
	ChangeTimeout time.Duration `yaml:"changeTimeout"`
	// BreakerThreshold is how many calls in a row must fail for a replica to stop
	// calling for a while. Default 5.
	BreakerThreshold int `yaml:"breakerThreshold"`
	// SilentAfter is how long D1 may tell nothing of an order that it has before it is
	// asked; then it is asked ever more rarely, at most every 7 days. Default 24h; 0s
	// never asks. A program may have its own.
	SilentAfter *time.Duration `yaml:"silentAfter"`
}

// silentAfter is SilentAfter as it is in effect.
func (s Sending) silentAfter() time.Duration {
	if s.SilentAfter == nil {
		return defaultSilentAfter
	}
	return *s.SilentAfter
}

// Limits are the times that orders of a card product without a program are held to.
func (s Sending) Limits() *order.Limits { return &order.Limits{SilentAfter: s.silentAfter()} }

// Notifications are how D1 shows us that it is D1. Whoever can pass for it can move
// the issuer's orders.
type Notifications struct {
	// Token demands a bearer token of our token endpoint. Default true.
	Token *bool `yaml:"token"`
	// ClientCertificate demands a certificate of notifications.tls.clientCaFile. Without
	// it a proxy in front has to demand one. Default true.
	ClientCertificate *bool `yaml:"clientCertificate"`
	// ClientNames are who of these authorities' certificates is D1: the subject's common
	// name, or one of its DNS names. Default: all of them.
	ClientNames []string `yaml:"clientNames"`
	// ClientID and ClientSecret are what D1 sends as Basic credentials for a token.
	ClientID     string `yaml:"clientId"`
	ClientSecret Secret `yaml:"clientSecret"`
	// ForeignAfter is how long a notification may wait for its order before it is taken
	// for somebody else's and no longer tried. Default 720h.
	ForeignAfter time.Duration `yaml:"foreignAfter"`
}

// WantsToken tells whether D1 has to bring a token. What was not set is on.
func (n *Notifications) WantsToken() bool { return n.Token == nil || *n.Token }

// WantsCertificate tells whether D1 has to show a client certificate.
func (n *Notifications) WantsCertificate() bool {
	return n.ClientCertificate == nil || *n.ClientCertificate
}

// Load reads and checks a configuration. The error lists every fault.
func Load(path string) (*Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	cfg, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	return cfg, nil
}

// Parse is Load for a text.
func Parse(text []byte) (*Config, error) {
	var cfg Config
	faults, err := decode(text, &cfg)
	if err != nil {
		return nil, err
	}
	overrideFromEnvironment(&cfg)
	cfg.SetDefaults()
	if _, ok := os.LookupEnv("CARDORDER_DATABASE_MIGRATE_URL"); ok {
		faults = append(faults, errors.New("the variable CARDORDER_DATABASE_MIGRATE_URL is now called CARDORDER_DATABASE_DIRECT_URL"))
	}
	if err := errors.Join(append(faults, cfg.Check())...); err != nil {
		return nil, err
	}
	return &cfg, nil
}

func overrideFromEnvironment(cfg *Config) {
	for name, secret := range map[string]*Secret{
		"CARDORDER_DATABASE_URL":        &cfg.Database.URL,
		"CARDORDER_DATABASE_DIRECT_URL": &cfg.Database.DirectURL,
		"CARDORDER_SEALING_KEYSET":      &cfg.Keys.Sealing,
		"CARDORDER_CONTENT_HASH_KEY":    &cfg.Keys.ContentHash,
	} {
		if value, ok := os.LookupEnv(name); ok {
			*secret = NewSecret(value)
		}
	}
}

// SetDefaults writes the defaults out, so that whoever shows a setting shows what is in
// effect. Parse has done so.
func (c *Config) SetDefaults() {
	setDefault(&c.API.Listen, ":8080")
	setDefault(&c.Notifications.Listen, ":8081")
	setDefault(&c.Admin.Listen, "127.0.0.1:9090")
	setDefault(&c.Log.Level, "info")
	if !c.Database.DirectURL.IsSet() && c.Database.DirectURL.fault == nil {
		c.Database.DirectURL = c.Database.URL
	}
	setDefault(&c.Database.MaxConns, 16)
	for i := range c.Issuers {
		in := &c.Issuers[i]
		setDefault(&in.DuplicateWindow, defaultDuplicateWindow)
		setDefault(&in.Notifications.ForeignAfter, 720*time.Hour)
		setDefault(&in.D1.Audience, "https://api.d1.thalescloud.io")
		setDefault(&in.D1.AssertionSubject, in.ID)
		setDefault(&in.D1.PathStyle, string(d1client.PathReference))
		setDefault(&in.D1.ChangePath, d1client.PathStyle(in.D1.PathStyle).ChangePath())
		setDefault(&in.Sending.Concurrency, 16)
		setDefault(&in.Sending.CallTimeout, 30*time.Second)
		setDefault(&in.Sending.Poll, time.Second)
		setDefault(&in.Sending.ResendAfter, 5*time.Minute)
		setDefault(&in.Sending.AfterUnknown, "resend")
		setDefault(&in.Sending.Retry404For, 15*time.Minute)
		setDefault(&in.Sending.StopAfterRefusals, 5)
		setDefault(&in.Sending.GiveUpAfter, 72*time.Hour)
		setDefault(&in.Sending.ChangeTimeout, 72*time.Hour)
		setDefault(&in.Sending.BreakerThreshold, 5)
		setDefault(&in.Notifications.Token, new(true))
		setDefault(&in.Notifications.ClientCertificate, new(true))
		setDefault(&in.Sending.SilentAfter, new(defaultSilentAfter))
	}
}

const (
	defaultDuplicateWindow = 720 * time.Hour
	defaultSilentAfter     = 24 * time.Hour
)

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Summary is the effective configuration with its secrets masked.
func (c *Config) Summary() (map[string]any, error) {
	text, err := yaml.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("writing the configuration: %w", err)
	}
	var summary map[string]any
	if err := yaml.Unmarshal(text, &summary); err != nil {
		return nil, fmt.Errorf("reading the configuration back: %w", err)
	}
	return summary, nil
}
