package d1client

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

const (
	jwtBearerGrant = "urn:ietf:params:oauth:grant-type:jwt-bearer"

	assertionLifetime = 5 * time.Minute // D1 accepts at most 15
	assertionBackdate = time.Minute     // for a clock at D1 that is behind ours

	// documentedTokenLifetime is taken when D1 does not say how long a token lives.
	// Too long a guess costs one 401.
	documentedTokenLifetime = 15 * time.Minute

	// tokenMargin is how long before its end a token is no longer used, but never
	// more than a tenth of its life: a token that dies on the way costs a 401.
	tokenMargin = 30 * time.Second
)

// TokenError is a token endpoint that answered without a usable token. Its text
// carries nothing that the endpoint wrote but a code known from RFC 6749.
type TokenError struct {
	// Status is the HTTP status. 0 when the answer was a success that cannot be used.
	Status int
	// Code is RFC 6749's error code; "other" when the endpoint sent one that the
	// RFC does not know; empty when it sent none.
	Code string
	// RetryAfter is what the endpoint asked for, at most an hour; 0 when nothing.
	RetryAfter time.Duration
}

func (e *TokenError) Error() string {
	switch {
	case e.Status == 0:
		return "token endpoint: no usable token in the answer"
	case e.Code == "":
		return fmt.Sprintf("token endpoint: status %d", e.Status)
	default:
		return fmt.Sprintf("token endpoint: status %d, %s", e.Status, e.Code)
	}
}

// refused tells a fault of our set-up (key, subject, grant) from an endpoint in
// trouble, which passes by itself.
func (e *TokenError) refused() bool {
	return e.Status >= 400 && e.Status < 500 && e.Status != http.StatusTooManyRequests &&
		e.Status != http.StatusRequestTimeout && e.Status != http.StatusTooEarly
}

var rfc6749Codes = map[string]bool{
	"invalid_request": true, "invalid_client": true, "invalid_grant": true,
	"unauthorized_client": true, "unsupported_grant_type": true, "invalid_scope": true,
	"access_denied": true, "server_error": true, "temporarily_unavailable": true,
}

// callError is a call that ended without an HTTP answer, with its metric label.
type callError struct {
	reason Reason
	err    error
}

func (e *callError) Error() string { return e.err.Error() }
func (e *callError) Unwrap() error { return e.err }

// accessToken is compared by address: two calls hold "the same token" when they
// hold the same pointer.
type accessToken struct {
	secret  secret
	staleAt time.Time
}

// tokenCache holds the token of all calls, fetched once for all who wait.
//
// oauth2.ReuseTokenSource is not used: its callers wait on a mutex, deaf to their
// own deadline, and a token that D1 rejects cannot be taken back.
type tokenCache struct {
	fetch   func(context.Context) (*accessToken, error)
	timeout time.Duration
	now     func() time.Time

	mu      sync.Mutex
	current *accessToken
	flight  *tokenFlight // the fetch under way, nil when none
}

// tokenFlight is one fetch; token and err may be read once done is closed.
type tokenFlight struct {
	done  chan struct{}
	token *accessToken
	err   error
}

// get returns a token that is good for now. The fetch runs on a context of its
// own: the first caller's deadline must not fail the others.
func (c *tokenCache) get(ctx context.Context) (*accessToken, error) {
	c.mu.Lock()
	if t := c.current; t != nil && c.now().Before(t.staleAt) {
		c.mu.Unlock()
		return t, nil
	}
	f := c.flight
	if f == nil {
		f = &tokenFlight{done: make(chan struct{})}
		c.flight = f
		go c.run(f)
	}
	c.mu.Unlock()

	select {
	case <-f.done:
		return f.token, f.err
	case <-ctx.Done():
		return nil, faultError(ctx, ctx.Err(), false, false)
	}
}

func (c *tokenCache) run(f *tokenFlight) {
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	f.token, f.err = c.fetch(ctx)

	c.mu.Lock()
	defer c.mu.Unlock()
	c.current, c.flight = f.token, nil
	close(f.done)
}

// drop forgets t, unless another call already did and a newer one stands there.
func (c *tokenCache) drop(t *accessToken) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == t {
		c.current = nil
	}
}

func newTokenCache(cfg Config, transport http.RoundTripper, assertion asserter) *tokenCache {
	cache := &tokenCache{timeout: cfg.TokenTimeout, now: time.Now}
	client := &http.Client{
		Transport:     userAgent{transport},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	cache.fetch = func(ctx context.Context) (*accessToken, error) {
		now := cache.now()
		signed, err := assertion(now)
		if err != nil {
			return nil, &callError{ReasonToken, err}
		}
		// The client credentials flow with another grant_type is the JWT bearer grant
		// of RFC 7523; the package allows the replacement. x/oauth2/jwt signs RS256 only.
		grant := clientcredentials.Config{
			TokenURL:  cfg.TokenURL,
			AuthStyle: oauth2.AuthStyleInParams,
			EndpointParams: url.Values{
				"grant_type": {jwtBearerGrant},
				"assertion":  {signed.reveal()},
			},
		}
		watched, handshakeFailed := watchHandshake(ctx)
		token, err := grant.Token(context.WithValue(watched, oauth2.HTTPClient, client))
		if err != nil {
			return nil, tokenFault(ctx, err, handshakeFailed(), now)
		}
		return newAccessToken(token, now)
	}
	return cache
}

// tokenFault makes a typed error of err and leaves out what the endpoint wrote.
func tokenFault(ctx context.Context, err error, handshakeFailed bool, now time.Time) error {
	if answer, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		te := &TokenError{
			Status:     answer.Response.StatusCode,
			RetryAfter: retryAfter(answer.Response.Header, now),
		}
		switch {
		case rfc6749Codes[answer.ErrorCode]:
			te.Code = answer.ErrorCode
		case answer.ErrorCode != "":
			te.Code = "other"
		}
		if te.refused() {
			return &callError{ReasonTokenRefused, te}
		}
		return &callError{ReasonToken, te}
	}
	if call, ok := errors.AsType[*url.Error](err); ok {
		// "Sent", so that a malformed answer is not repeated in the error's text.
		fe := faultError(ctx, call.Err, !isDialError(call.Err), handshakeFailed)
		if fe.reason != ReasonTLS && fe.reason != ReasonDial {
			fe.reason = ReasonToken
		}
		fe.err = fmt.Errorf("token endpoint: %w", fe.err)
		return fe
	}
	return &callError{ReasonToken, &TokenError{}}
}

// b64token is RFC 6750's form of a token: it goes into a header.
var b64token = regexp.MustCompile(`^[A-Za-z0-9._~+/-]+=*$`)

// maxToken is in bytes; servers bound their headers too.
const maxToken = 16 << 10

// newAccessToken reckons the token's life from asked, the moment before it was
// asked for: on this side of the truth.
func newAccessToken(token *oauth2.Token, asked time.Time) (*accessToken, error) {
	if len(token.AccessToken) > maxToken || !b64token.MatchString(token.AccessToken) {
		return nil, &callError{ReasonToken, &TokenError{}}
	}
	life := documentedTokenLifetime
	if !token.Expiry.IsZero() {
		// Expiry is on the package's own clock, rounded up: it has read it by now.
		life = max(0, time.Until(token.Expiry).Round(time.Second))
	}
	return &accessToken{
		secret:  newSecret(token.AccessToken),
		staleAt: asked.Add(life - min(tokenMargin, life/10)),
	}, nil
}

// asserter makes a signed assertion that asks for a token at the time now.
type asserter func(now time.Time) (secret, error)

func newAsserter(cfg Config) (asserter, error) {
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: cfg.SigningKey, KeyID: cfg.SigningKeyID}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, errors.New("SigningKey cannot sign ES256")
	}
	return func(now time.Time) (secret, error) {
		// Marshalled here because go-jose's jwt package writes aud as a list.
		claims, err := json.Marshal(map[string]any{
			"iss": cfg.AssertionSubject,
			"sub": cfg.AssertionSubject,
			"aud": cfg.Audience,
			"iat": now.Add(-assertionBackdate).Unix(),
			"exp": now.Add(assertionLifetime).Unix(),
			"jti": rand.Text(),
		})
		if err != nil {
			return secret{}, errors.New("assertion: claims cannot be written")
		}
		signed, err := signer.Sign(claims)
		if err != nil {
			return secret{}, errors.New("assertion: signing failed")
		}
		compact, err := signed.CompactSerialize()
		if err != nil {
			return secret{}, errors.New("assertion: signing failed")
		}
		return newSecret(compact), nil
	}, nil
}

type userAgent struct{ http.RoundTripper }

func (u userAgent) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("User-Agent", userAgentName)
	r.Header.Set("Accept", "application/json")
	return u.RoundTripper.RoundTrip(r)
}
