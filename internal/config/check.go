package config

import (
	"bytes"
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
	"time"

	"cardorder/internal/api"
	"cardorder/internal/d1client"
	"cardorder/internal/order"
	"cardorder/internal/store"
)

// checker gathers faults, each with the path of its field.
type checker struct {
	faults      []error
	environment string
}

func (c *checker) fault(path, format string, args ...any) {
	c.faults = append(c.faults, fmt.Errorf("%s: "+format, append([]any{path}, args...)...))
}

// secret checks a secret that must be there.
func (c *checker) secret(path string, s Secret, check func() error) {
	switch {
	case s.fault != nil:
		c.check(path, s.fault)
	case c.required(path, s.Reveal()) && check != nil:
		c.check(path, check())
	}
}

func (c *checker) required(path, value string) bool {
	if value == "" {
		c.fault(path, "is required")
	}
	return value != ""
}

func (c *checker) notNegative(path string, d time.Duration) {
	if d < 0 {
		c.fault(path, "must not be negative")
	}
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
	ch := checker{environment: c.Environment}
	if !slices.Contains([]string{"production", "staging", "development"}, c.Environment) {
		ch.fault("environment", "must be production, staging or development")
	}
	ch.secret("database.url", c.Database.URL, nil)
	if c.Database.DirectURL != c.Database.URL { // it may be set to the other, fault and all
		ch.check("database.directUrl", c.Database.DirectURL.fault)
	}
	if c.Database.MaxConns < 0 {
		ch.fault("database.maxConns", "must not be negative")
	}
	c.checkKeys(&ch)
	checkListener(&ch, "api", c.API)
	checkListener(&ch, "notifications", c.Notifications)
	checkListener(&ch, "admin", c.Admin)
	if _, err := c.Log.Slog(); err != nil {
		ch.check("log.level", err)
	}
	c.checkIssuers(&ch)
	c.checkWayIn(&ch)
	c.checkClients(&ch)
	_, err := c.LoadPrograms()
	for _, fault := range split(err) {
		ch.check("programsFile", fault)
	}
	return errors.Join(ch.faults...)
}

// split takes apart what errors.Join put together.
func split(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
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
	ch.secret("keys.sealing", c.Keys.Sealing, func() error {
		_, err := store.NewSealer([]byte(c.Keys.Sealing.Reveal()))
		return err
	})
	ch.secret("keys.contentHash", c.Keys.ContentHash, c.Keys.ContentHash.check32)
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
		ch.secret(path+".secret", k.Secret, k.Secret.check32)
	}
}

func (s Secret) check32() error {
	_, err := s.Bytes32()
	return err
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
		// A session that is resumed is not held to the authorities of now.
		cfg.SessionTicketsDisabled = true
	}
	return cfg, nil
}

// loadPool reads authorities. It wants all of the file: half of it, as of a copy that
// is still going on, would turn some peers away.
func loadPool(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool, found := x509.NewCertPool(), false
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, errors.New("a certificate in it cannot be read")
		}
		pool.AddCert(cert)
		found = true
	}
	switch {
	case bytes.Contains(text, []byte("-----BEGIN")):
		return nil, errors.New("it is cut off, or not PEM throughout")
	case !found:
		return nil, errors.New("there is no certificate in it")
	}
	return pool, nil
}

// checkWayIn checks how D1 shows that it is D1. That nothing here tells it from others
// has to be asked for.
func (c *Config) checkWayIn(ch *checker) {
	authorities := c.Notifications.TLS != nil && c.Notifications.TLS.ClientCAFile != ""
	for i := range c.Issuers {
		n := &c.Issuers[i].Notifications
		path := fmt.Sprintf("issuers[%d].notifications", i)
		if n.ForeignAfter < time.Hour {
			ch.fault(path+".foreignAfter", "must be at least 1h: an order may come to be known later than what D1 says of it")
		}
		if n.WantsToken() {
			ch.required(path+".clientId", n.ClientID)
			ch.secret(path+".clientSecret", n.ClientSecret, nil)
		}
		if n.WantsCertificate() && !authorities {
			ch.fault(path+".clientCertificate", "needs notifications.tls with clientCaFile; where a proxy in front demands D1's certificate, say so with clientCertificate: false")
		}
		if !n.WantsCertificate() && len(n.ClientNames) > 0 {
			ch.fault(path+".clientNames", "would be looked at by nobody: clientCertificate is false")
		}
		for j, name := range n.ClientNames {
			if strings.TrimSpace(name) != name || name == "" {
				ch.fault(fmt.Sprintf("%s.clientNames[%d]", path, j), "must be a name without spaces around it")
			}
		}
	}
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
		if in.ID != "" && seen[in.ID] {
			ch.fault(path+".id", "is the id of another issuer")
		}
		seen[in.ID] = true
		for j, bin := range in.BINs {
			if len(bin) < 6 || len(bin) > 8 || strings.Trim(bin, "0123456789") != "" {
				ch.fault(fmt.Sprintf("%s.bins[%d]", path, j), "must be 6 to 8 digits")
			}
		}
		in.checkVocabulary(ch, path)
		ch.notNegative(path+".duplicateWindow", in.DuplicateWindow)
		in.checkSending(ch, path+".sending", c.Environment)
		in.checkD1(ch, path+".d1", c.Environment)
	}
}

// checkVocabulary checks the words that D1 and the carriers use: each means one thing.
func (in *Issuer) checkVocabulary(ch *checker, path string) {
	words := func(field string, list []string, taken func(string) bool, fault string) {
		for i, word := range list {
			path := fmt.Sprintf("%s.%s[%d]", path, field, i)
			switch {
			case !d1client.IsCode(word):
				ch.fault(path, "must be 1 to 128 printable characters, with no space around them")
			case slices.Contains(list[:i], word):
				ch.fault(path, "is there already")
			case taken(word):
				ch.fault(path, "%s", fault)
			}
		}
	}
	words("onHoldStatuses", in.OnHoldStatuses, order.BuiltIn, "has a meaning of its own at D1")
	words("deliveredStatuses", in.DeliveredStatuses, func(string) bool { return false }, "")
	words("returnedStatuses", in.ReturnedStatuses, func(word string) bool { return slices.Contains(in.DeliveredStatuses, word) },
		"is one of deliveredStatuses too")
}

func (in *Issuer) checkD1(ch *checker, path, environment string) {
	before := len(ch.faults)
	d := &in.D1
	ch.check(path+".baseUrl", checkURL(environment, d.BaseURL))
	ch.check(path+".tokenUrl", checkURL(environment, d.TokenURL))
	if d.PathStyle != string(d1client.PathReference) && d.PathStyle != string(d1client.PathLowercase) {
		ch.fault(path+".pathStyle", "must be reference or lowercase")
	}
	if d.ChangePath != "" && !d1client.IsChangePath(d.ChangePath) {
		ch.fault(path+".changePath", "must be 1 to 4 parts of A-Z a-z 0-9 _ : -, with a slash between")
	}
	ch.secret(path+".signingKey", d.SigningKey, func() error {
		_, err := ParseSigningKey(d.SigningKey.Reveal())
		return err
	})
	ch.required(path+".signingKeyId", d.SigningKeyID)
	if d.CAFile != "" {
		_, err := loadPool(d.CAFile)
		ch.check(path+".caFile", err)
	}
	ch.check(path+".clientCertFile", d.checkCertificate(environment))
	if len(d.EncryptionKeys) == 0 {
		ch.fault(path+".encryptionKeys", "needs at least one key")
	}
	for i, k := range d.EncryptionKeys {
		_, err := k.load()
		ch.check(fmt.Sprintf("%s.encryptionKeys[%d].file", path, i), err)
	}
	if len(ch.faults) > before {
		return
	}
	// What only shows when all of it is put together.
	_, err := in.Encrypter()
	ch.check(path+".encryptionKeys", err)
	cfg, err := in.ClientConfig(environment)
	if err == nil {
		_, err = d1client.New(cfg)
	}
	ch.check(path, err)
}

// DrainTimeout is how long a stop waits for what is under way: a little longer
// than the longest call.
func (c *Config) DrainTimeout() time.Duration {
	var longest time.Duration
	for _, in := range c.Issuers {
		longest = max(longest, in.Sending.CallTimeout)
	}
	if longest == 0 {
		longest = 30 * time.Second
	}
	return longest + 10*time.Second
}

// Bounds of Sending. A call may take as long as a stop waits for it; and what a
// call left in the network must be gone, and D1 have shown the order, before "not
// there" counts.
const (
	maxCallTimeout = 2 * time.Minute
	minResendAfter = time.Minute // outside development
	minGiveUpAfter = time.Minute // likewise
	// D1's centre works by the day.
	minChangeTimeout = time.Hour
)

func (in *Issuer) checkSending(ch *checker, path, environment string) {
	s := in.Sending
	if s.Concurrency < 0 || s.Concurrency > 1024 {
		ch.fault(path+".concurrency", "must be 1 to 1024")
	}
	if s.RatePerSecond < 0 || s.RatePerSecond > 10_000 {
		ch.fault(path+".ratePerSecond", "must be 0 (no limit) to 10000")
	}
	// One refused order says nothing about the others.
	if n := s.StopAfterRefusals; n != 0 && (n < 2 || n > 1000) {
		ch.fault(path+".stopAfterRefusals", "must be 2 to 1000")
	}
	if s.BreakerThreshold < 0 || s.BreakerThreshold > 1000 {
		ch.fault(path+".breakerThreshold", "must be 1 to 1000")
	}
	ch.notNegative(path+".callTimeout", s.CallTimeout)
	ch.notNegative(path+".poll", s.Poll)
	ch.notNegative(path+".resendAfter", s.ResendAfter)
	ch.notNegative(path+".retry404For", s.Retry404For)
	ch.notNegative(path+".giveUpAfter", s.GiveUpAfter)
	ch.notNegative(path+".changeTimeout", s.ChangeTimeout)
	if s.CallTimeout > maxCallTimeout {
		ch.fault(path+".callTimeout", "must be at most %s", maxCallTimeout)
	}
	if least := max(minResendAfter, 2*s.CallTimeout); environment != "development" && s.ResendAfter > 0 && s.ResendAfter < least {
		ch.fault(path+".resendAfter", "must be at least %s, and twice callTimeout", least)
	}
	if s.GiveUpAfter > 0 && s.GiveUpAfter < minGiveUpAfter && environment != "development" {
		ch.fault(path+".giveUpAfter", "must be at least %s", minGiveUpAfter)
	}
	if s.ChangeTimeout > 0 && s.ChangeTimeout < minChangeTimeout && environment != "development" {
		ch.fault(path+".changeTimeout", "must be at least %s", minChangeTimeout)
	}
	if s.GiveUpAfter > 0 && s.GiveUpAfter <= s.Retry404For {
		ch.fault(path+".giveUpAfter", "must be more than retry404For: an order would be given up before it is rejected")
	}
	if s.SilentAfter != nil {
		ch.silentAfter(path+".silentAfter", *s.SilentAfter)
	}
	if s.AfterUnknown != "resend" && s.AfterUnknown != "wait" {
		ch.fault(path+".afterUnknown", "must be resend or wait")
	}
}

// checkURL checks an address of D1. A production service must not talk to
// staging, nor the reverse: it would order real cards as a test, or test cards
// for real people.
func checkURL(environment, raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
		u.Scheme != "https" && (u.Scheme != "http" || environment != "development") {
		return errors.New("must be an absolute https URL without user, query and fragment (http in development only)")
	}
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	staging := strings.HasSuffix(host, ".d1-stg.thalescloud.io")
	production := strings.HasSuffix(host, ".thalescloud.io") && !staging
	switch {
	case environment == "production" && !production,
		environment == "staging" && !staging,
		environment == "development" && production:
		return fmt.Errorf("host %s is not a D1 of the %s environment", host, environment)
	}
	return nil
}

// ClientConfig builds what the D1 client needs, keys included.
func (in *Issuer) ClientConfig(environment string) (d1client.Config, error) {
	cfg := d1client.Config{
		IssuerID: in.ID, BaseURL: in.D1.BaseURL, TokenURL: in.D1.TokenURL,
		AllowHTTP: environment == "development",
		Audience:  in.D1.Audience, AssertionSubject: in.D1.AssertionSubject,
		PathStyle: d1client.PathStyle(in.D1.PathStyle), ChangePath: in.D1.ChangePath, SigningKeyID: in.D1.SigningKeyID,
		ServiceUnavailableIsNotTaken: in.D1.ServiceUnavailableIsNotTaken,
		MaxIdleConns:                 in.Sending.Concurrency,
	}
	var err error
	if cfg.SigningKey, err = ParseSigningKey(in.D1.SigningKey.Reveal()); err != nil {
		return cfg, fmt.Errorf("signingKey: %w", err)
	}
	if err := in.D1.checkCertificate(environment); err != nil {
		return cfg, fmt.Errorf("clientCertFile: %w", err)
	}
	cfg.TLS, err = in.D1.clientTLS()
	return cfg, err
}

// checkCertificate checks the client certificate. D1 takes mutual TLS only; a
// simulator may do without.
func (d *D1) checkCertificate(environment string) error {
	switch {
	case d.ClientCertFile == "" && d.ClientKeyFile == "":
		if environment != "development" {
			return errors.New("is required, with clientKeyFile: D1 accepts mutual TLS only")
		}
		return nil
	case d.ClientCertFile == "" || d.ClientKeyFile == "":
		return errors.New("goes together with clientKeyFile")
	}
	_, err := d.loadCertificate()
	return err
}

func (d *D1) loadCertificate() (*tls.Certificate, error) {
	cert, err := tls.LoadX509KeyPair(d.ClientCertFile, d.ClientKeyFile)
	return &cert, err
}

func (d *D1) clientTLS() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if d.CAFile != "" {
		pool, err := loadPool(d.CAFile)
		if err != nil {
			return nil, fmt.Errorf("caFile: %w", err)
		}
		cfg.RootCAs = pool
	}
	if d.ClientCertFile != "" {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return d.loadCertificate() }
	}
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
		key, err := k.load()
		if err != nil {
			return nil, fmt.Errorf("[%d].file: %w", i, err)
		}
		keys = append(keys, key)
	}
	return d1client.NewEncrypter(keys...)
}

func (k EncryptionKey) load() (d1client.EncryptionKey, error) {
	text, err := os.ReadFile(k.File)
	if err != nil {
		return d1client.EncryptionKey{}, err
	}
	key, err := d1client.ParsePublicJWK(text)
	key.NotAfter = k.NotAfter
	return key, err
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
		ch.secret(path+".tokenSha256", client.TokenSHA256, func() error {
			hash, err := client.TokenHash()
			if err != nil {
				return err
			}
			if hashes[hash] {
				return errors.New("is the token of another client")
			}
			hashes[hash] = true
			return nil
		})
		for j, scope := range client.Scopes {
			if !slices.Contains(api.Scopes, scope) {
				ch.fault(fmt.Sprintf("%s.scopes[%d]", path, j), "must each be one of %s", strings.Join(api.Scopes, ", "))
			}
		}
		for j, issuer := range client.Issuers {
			if !slices.ContainsFunc(c.Issuers, func(in Issuer) bool { return in.ID == issuer }) {
				ch.fault(fmt.Sprintf("%s.issuers[%d]", path, j), "names an issuer that is not configured")
			}
		}
	}
}
