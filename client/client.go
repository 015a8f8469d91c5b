// Package client is the Go client of cardorder's REST API for core banking.
//
// Every call is repeated where that is safe and may help: after network errors,
// 429, 500, 502, 503 and 504, with growing random pauses or as long as the
// service asks for, until the attempts of [Config] are used up or the context
// ends. It is always safe, because no order is sent without a key by which the
// service recognizes it; see [Client.PlaceOrder] for whose key that should be.
//
// What the service refuses is a [*Problem], to be found with errors.As. No error
// holds anything of a request, and what carries personal or card data prints as
// its ids or as nothing.
package client

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Config says where the service is and how patient the client is.
type Config struct {
	// BaseURL is the service, as https://cards.bank.example: what stands before /v1.
	BaseURL string
	// IssuerID is the issuer whose cards are ordered.
	IssuerID string
	// Token is the bearer token. It may be left out only where HTTPClient
	// authorizes requests itself.
	Token Token
	// HTTPClient makes the requests; nil means one of the client's own. Redirects
	// are never followed. A Timeout of it would also cut uploads and streams short:
	// Timeout below does not.
	HTTPClient *http.Client
	// Timeout is how long one attempt may take; of uploads and of streams, how long
	// it may stand still. Default 30 s.
	Timeout time.Duration
	// MaxAttempts is how often a request is sent at most. Default 6; 1 means that
	// nothing is ever repeated.
	MaxAttempts int
	// Backoff is the longest pause before the second attempt. It doubles with each
	// attempt, up to MaxWait; the pause taken is a random part of it. Default 250 ms.
	Backoff time.Duration
	// MaxWait is the longest pause, also where the service asks for a longer one
	// with Retry-After. Default 30 s.
	MaxWait time.Duration
}

// Client calls the API for one issuer. It is safe for concurrent use.
type Client struct {
	issuerURL   string // all paths are below it
	token       Token
	http        *http.Client
	timeout     time.Duration
	maxAttempts int
	backoff     time.Duration
	maxWait     time.Duration
}

// New returns a client, or an error that names what is wrong with cfg.
func New(cfg Config) (*Client, error) {
	base, err := url.Parse(cfg.BaseURL)
	switch {
	case err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" ||
		base.User != nil || base.RawQuery != "" || base.Fragment != "":
		return nil, errors.New("cardorder: BaseURL must be an http or https URL without user, query and fragment") // err may quote a password
	case cfg.IssuerID == "":
		return nil, errors.New("cardorder: IssuerID is missing")
	case cfg.Token.reveal() == "" && cfg.HTTPClient == nil:
		return nil, errors.New("cardorder: Token is missing")
	case strings.ContainsFunc(cfg.Token.reveal(), func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return nil, errors.New("cardorder: Token must be visible ASCII characters")
	}
	c := &Client{
		issuerURL: strings.TrimSuffix(cfg.BaseURL, "/") + "/v1/issuers/" + url.PathEscape(cfg.IssuerID),
		token:     cfg.Token, http: ownHTTPClient(cfg.HTTPClient),
		timeout: cfg.Timeout, maxAttempts: cfg.MaxAttempts, backoff: cfg.Backoff, maxWait: cfg.MaxWait,
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		usual time.Duration
	}{
		{"Timeout", &c.timeout, 30 * time.Second}, {"Backoff", &c.backoff, 250 * time.Millisecond}, {"MaxWait", &c.maxWait, 30 * time.Second},
	} {
		if *d.value < 0 || *d.value > 24*time.Hour {
			return nil, fmt.Errorf("cardorder: %s must not be negative or more than a day", d.name)
		}
		if *d.value == 0 {
			*d.value = d.usual
		}
	}
	if c.maxAttempts < 0 {
		return nil, errors.New("cardorder: MaxAttempts must not be negative")
	}
	if c.maxAttempts == 0 {
		c.maxAttempts = 6
	}
	return c, nil
}

// ownHTTPClient returns a copy of given that follows no redirect: the token and
// the order are for this service only.
func ownHTTPClient(given *http.Client) *http.Client {
	var own http.Client
	if given != nil {
		own = *given
	} else if usual, ok := http.DefaultTransport.(*http.Transport); ok {
		transport := usual.Clone()
		transport.MaxIdleConnsPerHost = transport.MaxIdleConns // there is but one host
		own.Transport = transport
	}
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &own
}

// Token is a bearer token that cannot be printed by accident. It is a struct
// around a pointer: a string would show in any unexported field, where fmt
// cannot call methods.
type Token struct{ value *string }

// NewToken wraps a token.
func NewToken(token string) Token { return Token{&token} }

func (t Token) reveal() string {
	if t.value == nil {
		return ""
	}
	return *t.value
}

const redacted = "[redacted]"

func (Token) String() string               { return redacted }
func (Token) GoString() string             { return redacted }
func (Token) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (Token) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }
