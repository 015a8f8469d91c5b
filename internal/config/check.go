package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"

	"cardorder/internal/api"
	"cardorder/internal/d1client"
	"cardorder/internal/store"
)

// checker gathers faults, each with the path of its field.
type checker struct{ faults []error }

func (c *checker) fault(path, format string, args ...any) {
	c.faults = append(c.faults, fmt.Errorf("%s: "+format, append([]any{path}, args...)...))
}

func (c *checker) required(path, value string) bool {
	if value == "" {
		c.fault(path, "is required")
	}
	return value != ""
}

func (c *checker) check(path string, err error) {
	if err != nil {
		c.fault(path, "%w", err)
	}
}

// Check returns every fault of a configuration. It reads the files that the
// configuration names, so that a missing key shows at the start and not at the
// first order.
func (c *Config) Check() error {
	var ch checker
	if !slices.Contains([]string{"production", "staging", "development"}, c.Environment) {
		ch.fault("environment", "must be production, staging or development")
	}
	ch.required("database.url", c.Database.URL.Reveal())
	if c.Database.MaxConns < 0 {
		ch.fault("database.maxConns", "must not be negative")
	}
	c.checkKeys(&ch)
	for path, l := range map[string]Listener{"api": c.API, "notifications": c.Notifications, "admin": c.Admin} {
		checkListener(&ch, path, l)
	}
	if _, err := c.Log.Slog(); err != nil {
		ch.check("log.level", err)
	}
	c.checkIssuers(&ch)
	c.checkClients(&ch)
	return errors.Join(ch.faults...)
}

// Slog returns the level for the logger.
func (l Log) Slog() (slog.Level, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.Level)); err != nil {
		return 0, errors.New("must be debug, info, warn or error")
	}
	return level, nil
}

func (c *Config) checkKeys(ch *checker) {
	if ch.required("keys.sealing", c.Keys.Sealing.Reveal()) {
		_, err := store.NewSealer([]byte(c.Keys.Sealing.Reveal()))
		ch.check("keys.sealing", err)
	}
	if ch.required("keys.contentHash", c.Keys.ContentHash.Reveal()) {
		_, err := c.Keys.ContentHash.Bytes32()
		ch.check("keys.contentHash", err)
	}
	if len(c.Keys.NotificationTokens) == 0 {
		ch.fault("keys.notificationTokens", "needs at least one key")
	}
	seen := make(map[string]bool)
	for i, k := range c.Keys.NotificationTokens {
		path := fmt.Sprintf("keys.notificationTokens[%d]", i)
		if ch.required(path+".id", k.ID) && seen[k.ID] {
			ch.fault(path+".id", "is the id of another key")
		}
		seen[k.ID] = true
		_, err := k.Secret.Bytes32()
		ch.check(path+".secret", err)
	}
}

// Bytes32 decodes a secret of 32 bytes in base64.
func (s Secret) Bytes32() ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(s.Reveal())
	if err != nil || len(b) != 32 {
		return nil, errors.New("must be 32 bytes in base64")
	}
	return b, nil
}

func checkListener(ch *checker, path string, l Listener) {
	if _, _, err := net.SplitHostPort(l.Listen); err != nil {
		ch.fault(path+".listen", "must be host:port")
	}
	if l.TLS != nil {
		_, err := l.TLS.Server()
		ch.check(path+".tls", err)
	}
}

// Server builds the server's side of TLS.
func (t *TLS) Server() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("loading certFile and keyFile: %w", err)
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if t.ClientCAFile != "" {
		if cfg.ClientCAs, err = loadPool(t.ClientCAFile); err != nil {
			return nil, fmt.Errorf("loading clientCaFile: %w", err)
		}
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return cfg, nil
}

func loadPool(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, errors.New("there is no certificate in it")
	}
	return pool, nil
}

func (c *Config) checkIssuers(ch *checker) {
	if len(c.Issuers) == 0 {
		ch.fault("issuers", "needs at least one issuer")
	}
	seen := make(map[string]bool)
	for i := range c.Issuers {
		in := &c.Issuers[i]
		path := fmt.Sprintf("issuers[%d]", i)
		if len(in.ID) != 10 || strings.ContainsFunc(in.ID, func(r rune) bool { return r < '!' || r > '~' || strings.ContainsRune("/?#%", r) }) {
			ch.fault(path+".id", "must be exactly 10 characters that may stand in a URL")
		}
		if seen[in.ID] {
			ch.fault(path+".id", "is the id of another issuer")
		}
		seen[in.ID] = true
		for j, bin := range in.BINs {
			if len(bin) < 6 || len(bin) > 8 || strings.Trim(bin, "0123456789") != "" {
				ch.fault(fmt.Sprintf("%s.bins[%d]", path, j), "must be 6 to 8 digits")
			}
		}
		in.checkSending(ch, path+".sending")
		ch.required(path+".notifications.clientId", in.Notifications.ClientID)
		ch.required(path+".notifications.clientSecret", in.Notifications.ClientSecret.Reveal())
		_, err := in.ClientConfig(c.Environment)
		ch.check(path+".d1", err)
		_, err = in.Encrypter()
		ch.check(path+".d1.encryptionKeys", err)
		ch.check(path+".d1", checkEnvironment(c.Environment, in.D1.BaseURL, in.D1.TokenURL))
	}
}

func (in *Issuer) checkSending(ch *checker, path string) {
	s := in.Sending
	if s.Concurrency < 0 || s.Concurrency > 1024 {
		ch.fault(path+".concurrency", "must be 1 to 1024")
	}
	if s.CallTimeout < 0 || s.ResendAfter < 0 || s.RetryRefusedFor < 0 || s.Poll < 0 {
		ch.fault(path, "durations must not be negative")
	}
	if s.AfterUnknown != "resend" && s.AfterUnknown != "wait" {
		ch.fault(path+".afterUnknown", "must be resend or wait")
	}
}

// checkEnvironment refuses a production service that talks to staging and the
// reverse: it would order real cards as a test, or test cards for real people.
func checkEnvironment(environment string, urls ...string) error {
	for _, raw := range urls {
		u, err := url.Parse(raw)
		if err != nil {
			continue // ClientConfig reports it
		}
		host := u.Hostname()
		staging := strings.HasSuffix(host, ".d1-stg.thalescloud.io")
		production := strings.HasSuffix(host, ".thalescloud.io") && !staging
		switch {
		case environment == "production" && !production,
			environment == "staging" && !staging,
			environment == "development" && production:
			return fmt.Errorf("host %s is not a D1 of the %s environment", host, environment)
		}
	}
	return nil
}

// ClientConfig builds what the D1 client needs, keys included.
func (in *Issuer) ClientConfig(environment string) (d1client.Config, error) {
	cfg := d1client.Config{
		IssuerID: in.ID, BaseURL: in.D1.BaseURL, TokenURL: in.D1.TokenURL,
		AllowHTTP: environment == "development",
		Audience:  in.D1.Audience, AssertionSubject: in.D1.AssertionSubject,
		PathStyle: d1client.PathStyle(in.D1.PathStyle), SigningKeyID: in.D1.SigningKeyID,
		ServiceUnavailableIsNotTaken: in.D1.ServiceUnavailableIsNotTaken,
		MaxIdleConns:                 in.Sending.Concurrency,
	}
	var faults []error
	var err error
	if cfg.SigningKey, err = ParseSigningKey(in.D1.SigningKey.Reveal()); err != nil {
		faults = append(faults, fmt.Errorf("signingKey: %w", err))
	}
	if cfg.TLS, err = in.D1.clientTLS(environment); err != nil {
		faults = append(faults, err)
	}
	if len(faults) == 0 {
		if _, err := d1client.New(cfg); err != nil {
			faults = append(faults, err)
		}
	}
	return cfg, errors.Join(faults...)
}

func (d *D1) clientTLS(environment string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if d.CAFile != "" {
		pool, err := loadPool(d.CAFile)
		if err != nil {
			return nil, fmt.Errorf("caFile: %w", err)
		}
		cfg.RootCAs = pool
	}
	if d.ClientCertFile == "" && d.ClientKeyFile == "" {
		if environment != "development" {
			return nil, errors.New("clientCertFile and clientKeyFile are required: D1 accepts mutual TLS only")
		}
		return cfg, nil
	}
	load := func() (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(d.ClientCertFile, d.ClientKeyFile)
		return &cert, err
	}
	if _, err := load(); err != nil {
		return nil, fmt.Errorf("clientCertFile and clientKeyFile: %w", err)
	}
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	return cfg, nil
}

// ParseSigningKey reads a P-256 private key in PEM (SEC 1 or PKCS #8).
func ParseSigningKey(text string) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("must be a private key in PEM")
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		ec, ok := parsed.(*ecdsa.PrivateKey)
		if err != nil || !ok {
			return nil, errors.New("must be an EC private key")
		}
		key = ec
	}
	if key.Curve != elliptic.P256() {
		return nil, errors.New("must be on the curve P-256 (ES256)")
	}
	return key, nil
}

// Encrypter loads D1's public keys.
func (in *Issuer) Encrypter() (*d1client.Encrypter, error) {
	var keys []d1client.EncryptionKey
	for i, k := range in.D1.EncryptionKeys {
		text, err := os.ReadFile(k.File)
		if err != nil {
			return nil, fmt.Errorf("[%d].file: %w", i, err)
		}
		key, err := d1client.ParsePublicJWK(text)
		if err != nil {
			return nil, fmt.Errorf("[%d].file: %w", i, err)
		}
		key.NotAfter = k.NotAfter
		keys = append(keys, key)
	}
	return d1client.NewEncrypter(keys...)
}

// TokenHash decodes the hash of a client's token.
func (c *Client) TokenHash() ([sha256.Size]byte, error) {
	b, err := hex.DecodeString(c.TokenSHA256.Reveal())
	if err != nil || len(b) != sha256.Size {
		return [sha256.Size]byte{}, errors.New("must be a SHA-256 in hex")
	}
	return [sha256.Size]byte(b), nil
}

func (c *Config) checkClients(ch *checker) {
	names, hashes := make(map[string]bool), make(map[[sha256.Size]byte]bool)
	for i, client := range c.Clients {
		path := fmt.Sprintf("clients[%d]", i)
		if ch.required(path+".name", client.Name) && names[client.Name] {
			ch.fault(path+".name", "is the name of another client")
		}
		names[client.Name] = true
		hash, err := client.TokenHash()
		ch.check(path+".tokenSha256", err)
		if err == nil && hashes[hash] {
			ch.fault(path+".tokenSha256", "is the token of another client")
		}
		hashes[hash] = true
		for _, scope := range client.Scopes {
			if !slices.Contains(api.Scopes, scope) {
				ch.fault(path+".scopes", "must be of %s", strings.Join(api.Scopes, ", "))
			}
		}
		for _, issuer := range client.Issuers {
			if !slices.ContainsFunc(c.Issuers, func(in Issuer) bool { return in.ID == issuer }) {
				ch.fault(path+".issuers", "names an issuer that is not configured")
			}
		}
	}
}
