// Package d1client speaks HTTP to Thales D1: the access token, mutual TLS, the
// production order, the question how it stands, its changes, and the encryption of card data.
//
// Its one promise is about what an answer proves. A card must be made exactly
// once, so every call ends in an [Outcome] that tells whether D1 may have taken
// the order, and never in a bare error that a caller would have to interpret.
package d1client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// PathStyle is how the paths of D1 are spelled: its own documents disagree.
type PathStyle string

const (
	// PathReference is the API reference's spelling:
	// /physicalCards/{cardId}/operations:production and .../productionStatus.
	PathReference PathStyle = "reference"
	// PathLowercase is the guide's spelling:
	// /physicalcards/{cardId}/operations/production. The guide does not print the
	// status call in this style; .../productionstatus is assumed.
	PathLowercase PathStyle = "lowercase"
)

// Config says how to reach D1 for one issuer.
type Config struct {
	// IssuerID is the issuer at D1, exactly 10 characters. Required.
	IssuerID string

	// BaseURL is the root of D1's banking API, such as
	// https://api.d1.thalescloud.io/banking/v1. Required.
	BaseURL string

	// TokenURL is D1's OAuth token endpoint, such as
	// https://api.d1.thalescloud.io/authz/v1/oauth2/token. Required.
	TokenURL string

	// AllowHTTP accepts http:// in BaseURL and TokenURL, for simulators: personal
	// data and tokens then travel in clear. Default false.
	AllowHTTP bool

	// Audience is the aud claim of the assertion that asks for a token.
	// Default https://api.d1.thalescloud.io.
	Audience string

	// AssertionSubject is the iss and sub of that assertion: the aggregator's id
	// where one acts for several issuers. Default IssuerID.
	AssertionSubject string

	// PathStyle is the spelling of D1's paths. Default PathReference.
	PathStyle PathStyle

	// ChangePath is where a change of a card's order goes, under the card's own path.
	// D1 documents none. Default operations:change, in PathLowercase operations/change.
	ChangePath string

	// SigningKey signs the assertion (ES256, so a P-256 key) and SigningKeyID is
	// the kid under which D1 knows its public half. Both required.
	SigningKey   *ecdsa.PrivateKey
	SigningKeyID string

	// TLS holds the client certificate and the trusted roots. It is cloned; TLS 1.2
	// is the least accepted, whatever MinVersion says. Give the certificate by
	// GetClientCertificate so that a rotated one is used by the next connection,
	// and call [Client.Close] then so that idle connections with the old one go.
	// Default: the system's roots and no client certificate.
	TLS *tls.Config

	// MaxConnsPerHost limits open connections to BaseURL's host, busy or idle. A
	// call that waits for one in vain was certainly not taken. Default 0: no
	// limit, since the caller limits its concurrency.
	MaxConnsPerHost int

	// MaxIdleConns is how many idle connections to BaseURL's host are kept.
	// Default 32.
	MaxIdleConns int

	// IdleTimeout closes connections idle for so long. Keep it below D1's own
	// (unknown): a connection that D1 closes just as an order is written on it
	// makes that order's outcome unknown. Default 30 s.
	IdleTimeout time.Duration

	// TokenTimeout bounds one fetch of a token, for all the calls that wait for
	// it. Default 10 s.
	TokenTimeout time.Duration

	// ServiceUnavailableIsNotTaken makes a 503 to an order mean "certainly not
	// taken" rather than "unknown". D1 documents nothing, so only set it once
	// Thales has confirmed it. Default false.
	ServiceUnavailableIsNotTaken bool
}

// Not worth a setting: both ends well before any sensible call deadline.
const (
	dialTimeout         = 5 * time.Second
	tlsHandshakeTimeout = 5 * time.Second
)

// maxHeaderBytes bounds the headers of one answer, interim (1xx) ones included.
const maxHeaderBytes = 64 << 10

// Client calls D1 for one issuer. It is safe for concurrent use.
type Client struct {
	cards     string // URL of the issuer's cards, with a slash at its end
	paths     paths
	transport *http.Transport
	tokens    *tokenCache
	closeIdle func()

	unavailableIsNotTaken bool
	now                   func() time.Time
}

type paths struct{ cards, production, status, change string }

var pathStyles = map[PathStyle]paths{
	PathReference: {"physicalCards", "operations:production", "productionStatus", "operations:change"},
	PathLowercase: {"physicalcards", "operations/production", "productionstatus", "operations/change"},
}

var issuerPattern = regexp.MustCompile(`^[!-~]{10}$`)

// New checks cfg and returns its client. The error names every fault of cfg at
// once. Nothing is connected yet.
func New(cfg Config) (*Client, error) {
	cfg = cfg.withDefaults()
	base, err := cfg.check()
	if err != nil {
		return nil, fmt.Errorf("d1client: %w", err)
	}
	assertion, err := newAsserter(cfg)
	if err != nil {
		return nil, fmt.Errorf("d1client: %w", err)
	}

	transport := newTransport(cfg)
	// The token endpoint has connections of its own: behind MaxConnsPerHost, orders
	// that wait for D1 would keep the token from being fetched.
	tokenTransport := transport.Clone()
	tokenTransport.MaxConnsPerHost = 0

	p := pathStyles[cfg.PathStyle]
	p.change = cfg.ChangePath
	return &Client{
		cards:     base + "/issuers/" + url.PathEscape(cfg.IssuerID) + "/" + p.cards + "/",
		paths:     p,
		transport: transport,
		tokens:    newTokenCache(cfg, tokenTransport, assertion),
		closeIdle: func() {
			transport.CloseIdleConnections()
			tokenTransport.CloseIdleConnections()
		},
		unavailableIsNotTaken: cfg.ServiceUnavailableIsNotTaken,
		now:                   time.Now,
	}, nil
}

// Close closes idle connections. Calls under way go on and the client stays
// usable: call it at the end, and after a new client certificate has come.
func (c *Client) Close() { c.closeIdle() }

func (cfg Config) withDefaults() Config {
	setDefault(&cfg.Audience, "https://api.d1.thalescloud.io")
	setDefault(&cfg.AssertionSubject, cfg.IssuerID)
	setDefault(&cfg.PathStyle, PathReference)
	setDefault(&cfg.ChangePath, cfg.PathStyle.ChangePath())
	setDefault(&cfg.MaxIdleConns, 32)
	setDefault(&cfg.IdleTimeout, 30*time.Second)
	setDefault(&cfg.TokenTimeout, 10*time.Second)
	return cfg
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// check returns BaseURL without a slash at its end, or all the faults of cfg.
func (cfg Config) check() (base string, err error) {
	var faults []error
	fault := func(bad bool, text string) {
		if bad {
			faults = append(faults, errors.New(text))
		}
	}

	baseURL, ok := cfg.parseURL(cfg.BaseURL)
	fault(!ok, "BaseURL must be an absolute https URL without user, query and fragment")
	_, ok = cfg.parseURL(cfg.TokenURL)
	fault(!ok, "TokenURL must be an absolute https URL without user, query and fragment")
	fault(!issuerPattern.MatchString(cfg.IssuerID), "IssuerID must have exactly 10 characters")
	fault(pathStyles[cfg.PathStyle] == paths{}, "PathStyle must be reference or lowercase")
	fault(pathStyles[cfg.PathStyle] != paths{} && !IsChangePath(cfg.ChangePath), "ChangePath must be a path below the card's")
	fault(cfg.SigningKey == nil || cfg.SigningKey.Curve != elliptic.P256(), "SigningKey must be a P-256 key")
	fault(cfg.SigningKeyID == "", "SigningKeyID is required")
	fault(cfg.TLS != nil && cfg.TLS.InsecureSkipVerify, "TLS must verify D1's certificate")
	fault(cfg.MaxConnsPerHost < 0 || cfg.MaxIdleConns < 0, "MaxConnsPerHost and MaxIdleConns must not be negative")
	fault(cfg.IdleTimeout < 0 || cfg.TokenTimeout < 0, "IdleTimeout and TokenTimeout must not be negative")

	return strings.TrimRight(baseURL.String(), "/"), errors.Join(faults...)
}

// parseURL never returns nil, so that check can go on to the next fault.
func (cfg Config) parseURL(raw string) (*url.URL, bool) {
	u, err := url.Parse(raw)
	if err != nil {
		return &url.URL{}, false
	}
	ok := u.Host != "" && u.User == nil && u.RawQuery == "" && u.Fragment == "" &&
		(u.Scheme == "https" || u.Scheme == "http" && cfg.AllowHTTP)
	return u, ok
}

// dial makes connections whose Close throws away what was not sent yet. Otherwise
// the kernel goes on sending it for minutes after a call has ended, and the last
// moment at which a byte may have left would not be known. The price: D1 sees
// closed connections as reset.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, address)
	if tcp, ok := conn.(*net.TCPConn); ok && err == nil {
		if err := tcp.SetLinger(0); err != nil {
			_ = conn.Close()
			return nil, err
		}
	}
	return conn, err
}

func newTransport(cfg Config) *http.Transport {
	tlsConfig := cfg.TLS.Clone()
	if tlsConfig == nil {
		tlsConfig = &tls.Config{}
	}
	tlsConfig.MinVersion = max(tlsConfig.MinVersion, tls.VersionTLS12)
	tlsConfig.NextProtos = nil

	// HTTP/1.1 only. On HTTP/2 all calls share a connection, so one cut makes all
	// their outcomes unknown at once; and the transport sends a request again by
	// itself after GOAWAY or REFUSED_STREAM, past BeforeSend.
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)

	return &http.Transport{
		Protocols: protocols,
		// Banks do put a proxy before the internet: HTTPS_PROXY and NO_PROXY count.
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dial,
		TLSClientConfig:        tlsConfig,
		TLSHandshakeTimeout:    tlsHandshakeTimeout,
		MaxConnsPerHost:        cfg.MaxConnsPerHost,
		MaxIdleConnsPerHost:    cfg.MaxIdleConns,
		IdleConnTimeout:        cfg.IdleTimeout,
		MaxResponseHeaderBytes: maxHeaderBytes,
		DisableCompression:     true, // answers are small, and a limit on them must mean what it says
	}
}
