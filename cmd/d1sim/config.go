package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"cardorder/internal/d1sim"

	"go.yaml.in/yaml/v3"
)

// configFile is the YAML file. Unknown members are refused.
type configFile struct {
	// Audience is what `aud` of token assertions must be. Default https://api.d1.thalescloud.io.
	Audience string `yaml:"audience"`

	// Issuers are the banks served. Required, at least one.
	Issuers []issuer `yaml:"issuers"`

	// Aggregators act for several issuers with one token. Default none.
	Aggregators []aggregator `yaml:"aggregators"`

	// TLS is how the simulator calls the issuers. Default: the system's authorities, no client certificate.
	TLS clientTLS `yaml:"tls"`

	// Settings are the settings at start. Default: see d1sim.Settings.
	Settings d1sim.Settings `yaml:"settings"`
}

type issuer struct {
	ID               string       `yaml:"id"`               // exactly 10 of A-Za-z0-9_-
	SigningKeys      []signingKey `yaml:"signingKeys"`      // that sign its token assertions
	PathStyle        string       `yaml:"pathStyle"`        // reference (default) or lowercase
	NotificationsURL string       `yaml:"notificationsUrl"` // in full; empty: notifications are queued for ever
	TokenURL         string       `yaml:"tokenUrl"`         // empty: notifications carry no token
	ClientID         string       `yaml:"clientId"`         // Basic credentials at tokenUrl
	ClientSecret     string       `yaml:"clientSecret"`
	ClientSecretEnv  string       `yaml:"clientSecretEnv"`  // environment variable to take the secret from instead
	ClientSecretFile string       `yaml:"clientSecretFile"` // or the file; a relative path starts at the YAML file
}

type aggregator struct {
	ID          string       `yaml:"id"`
	SigningKeys []signingKey `yaml:"signingKeys"`
	Issuers     []string     `yaml:"issuers"` // ids that it acts for
}

// clientTLS are PEM files; a relative path starts at the YAML file.
type clientTLS struct {
	CertFile string `yaml:"certFile"` // the simulator's certificate, as D1 has one
	KeyFile  string `yaml:"keyFile"`
	CAFile   string `yaml:"caFile"` // authorities of the issuers' certificates
}

type signingKey struct {
	KID           string `yaml:"kid"`
	PublicKeyFile string `yaml:"publicKeyFile"` // PEM "PUBLIC KEY", P-256; a relative path starts at the YAML file
}

// loadConfig reads the YAML file and the keys it names, telling all faults at once.
func loadConfig(path string) (d1sim.Config, error) {
	if path == "" {
		return d1sim.Config{}, errors.New("--config is required")
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return d1sim.Config{}, err
	}
	var file configFile
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		return d1sim.Config{}, fmt.Errorf("%s: %w", path, err)
	}

	cfg := d1sim.Config{Audience: file.Audience, Settings: file.Settings}
	var faults []error
	if cfg.TLS, err = file.TLS.load(filepath.Dir(path)); err != nil {
		faults = append(faults, fmt.Errorf("tls: %w", err))
	}
	keys := func(of string, list []signingKey) map[string]*ecdsa.PublicKey {
		loaded, err := loadSigningKeys(list, filepath.Dir(path))
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", of, err))
		}
		return loaded
	}
	for _, i := range file.Issuers {
		secret, err := i.secret(filepath.Dir(path))
		if err != nil {
			faults = append(faults, fmt.Errorf("issuer %s: %w", i.ID, err))
		}
		cfg.Issuers = append(cfg.Issuers, d1sim.Issuer{
			ID:               i.ID,
			SigningKeys:      keys("issuer "+i.ID, i.SigningKeys),
			PathStyle:        i.PathStyle,
			NotificationsURL: i.NotificationsURL,
			TokenURL:         i.TokenURL,
			ClientID:         i.ClientID,
			ClientSecret:     secret,
		})
	}
	for _, a := range file.Aggregators {
		cfg.Aggregators = append(cfg.Aggregators, d1sim.Aggregator{
			ID: a.ID, SigningKeys: keys("aggregator "+a.ID, a.SigningKeys), IssuerIDs: a.Issuers})
	}
	if err := errors.Join(faults...); err != nil {
		return d1sim.Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return cfg, nil
}

// load returns nil when nothing is set.
func (c clientTLS) load(dir string) (*tls.Config, error) {
	if c == (clientTLS{}) {
		return nil, nil
	}
	in := func(file string) string {
		if file == "" || filepath.IsAbs(file) {
			return file
		}
		return filepath.Join(dir, file)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		text, err := os.ReadFile(in(c.CAFile))
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s: there is no certificate in it", c.CAFile)
		}
	}
	if c.CertFile == "" && c.KeyFile == "" {
		return cfg, nil
	}
	if _, err := tls.LoadX509KeyPair(in(c.CertFile), in(c.KeyFile)); err != nil {
		return nil, err
	}
	// Read for every connection, so that a rotated one is used.
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(in(c.CertFile), in(c.KeyFile))
		return &cert, err
	}
	return cfg, nil
}

// secret takes the one of the three sources that is given.
func (i issuer) secret(dir string) (string, error) {
	given := 0
	for _, source := range []string{i.ClientSecret, i.ClientSecretEnv, i.ClientSecretFile} {
		if source != "" {
			given++
		}
	}
	switch {
	case given > 1:
		return "", errors.New("clientSecret, clientSecretEnv and clientSecretFile exclude each other")
	case i.ClientSecretEnv != "":
		secret := os.Getenv(i.ClientSecretEnv)
		if secret == "" {
			return "", fmt.Errorf("environment variable %s is empty", i.ClientSecretEnv)
		}
		return secret, nil
	case i.ClientSecretFile != "":
		file := i.ClientSecretFile
		if !filepath.IsAbs(file) {
			file = filepath.Join(dir, file)
		}
		secret, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		return strings.TrimSpace(string(secret)), nil
	}
	return i.ClientSecret, nil
}

func loadSigningKeys(list []signingKey, dir string) (map[string]*ecdsa.PublicKey, error) {
	keys := make(map[string]*ecdsa.PublicKey)
	for _, k := range list {
		if _, twice := keys[k.KID]; twice || k.KID == "" {
			return nil, fmt.Errorf("signing key %q: kid is empty or there twice", k.KID)
		}
		path := k.PublicKeyFile
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		key, err := loadPublicKey(path)
		if err != nil {
			return nil, fmt.Errorf("signing key %s: %w", k.KID, err)
		}
		keys[k.KID] = key
	}
	return keys, nil
}

func loadPublicKey(path string) (*ecdsa.PublicKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("%s: is not a PEM PUBLIC KEY", path)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%s: is not an elliptic curve key", path)
	}
	return ec, nil
}
