package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// TokenKey signs the tokens with which D1 calls us. All replicas have the same
// keys, so a token of one is good at every other.
type TokenKey struct {
	ID     string
	Secret []byte // 32 bytes, HS256
}

// tokenLifetime is that of D1's own tokens (D1: expires_in 900).
const tokenLifetime = 15 * time.Minute

const tokenIssuer = "cardorder"

// tokenClaims name the issuers for which the bearer may send notifications.
type tokenClaims struct {
	jwt.Claims
	Issuers []string `json:"issuers"`
}

// tokens signs and checks the tokens that D1 gets from us. It needs no database.
type tokens struct {
	keys []TokenKey // the first one signs, all are good
	now  func() time.Time

	// D1 brings the same token for 15 minutes: its signature is checked once.
	mu    sync.Mutex
	known map[[sha256.Size]byte]tokenClaims
}

// maxKnownTokens is how many tokens are remembered: each issuer's, and those before.
const maxKnownTokens = 256

// maxTokenBody is the largest token request taken, in bytes.
const maxTokenBody = 8 << 10

// The errors of RFC 6749 section 5.2 that there are here.
const (
	oauthInvalidRequest   = "invalid_request"
	oauthInvalidClient    = "invalid_client"
	oauthUnsupportedGrant = "unsupported_grant_type"
	oauthInvalidScope     = "invalid_scope"
)

// scopePattern is what a scope may be (RFC 6749 section 3.3).
var scopePattern = regexp.MustCompile(`^[!#-\[\]-~]+( [!#-\[\]-~]+)*$`)

// grant answers a token request (RFC 6749 section 4.4: client credentials).
func (d *d1Side) grant(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Pragma", "no-cache")
	if len(r.Header.Values("Authorization")) > 1 {
		writeOAuthError(w, oauthInvalidRequest)
		return
	}
	id, secret, _ := r.BasicAuth()
	issuers := d.grantable(r, id, secret)
	if len(issuers) == 0 {
		writeOAuthError(w, oauthInvalidClient)
		return
	}
	annotate(r.Context(), slog.Any("issuerIds", issuers))
	r.Body = http.MaxBytesReader(w, r.Body, maxTokenBody)
	scope, fault := readTokenRequest(r, id)
	if fault != "" {
		writeOAuthError(w, fault)
		return
	}
	token, err := d.tokens.sign(id, issuers)
	if err != nil {
		d.Log.Error("signing a token failed", "correlationId", correlationID(r.Context()), "error", err)
		writeJSON(w, http.StatusInternalServerError, map[string]string{"error": "server_error"})
		return
	}
	answer := map[string]string{
		"access_token": token, "token_type": "Bearer",
		// D1 wants a string here (D1: token endpoint hosted by the issuer).
		"expires_in": strconv.Itoa(int(tokenLifetime / time.Second)),
	}
	if scope != "" { // it means nothing here: what was asked for is granted
		answer["scope"] = scope
	}
	writeJSON(w, http.StatusOK, answer)
}

// readTokenRequest returns the scope that a request asks for, or its fault.
// Parameters count in a form only: a query stands in the logs of proxies.
func readTokenRequest(r *http.Request, clientID string) (scope, fault string) {
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "application/x-www-form-urlencoded" || r.URL.RawQuery != "" || r.ParseForm() != nil {
		return "", oauthInvalidRequest
	}
	for _, values := range r.PostForm {
		if len(values) > 1 { // of two, which one is meant?
			return "", oauthInvalidRequest
		}
	}
	// One way to authenticate at a time (RFC 6749 section 2.3). To repeat who one is
	// does no harm.
	if id := r.PostForm.Get("client_id"); r.PostForm.Get("client_secret") != "" || id != "" && id != clientID && id != decoded(clientID) {
		return "", oauthInvalidRequest
	}
	switch r.PostForm.Get("grant_type") {
	case "client_credentials":
	case "":
		return "", oauthInvalidRequest
	default:
		return "", oauthUnsupportedGrant
	}
	if scope = r.PostForm.Get("scope"); scope != "" && !scopePattern.MatchString(scope) {
		return "", oauthInvalidScope
	}
	return scope, ""
}

func writeOAuthError(w http.ResponseWriter, code string) {
	status := http.StatusBadRequest
	if code == oauthInvalidClient {
		status = http.StatusUnauthorized
		w.Header().Set("WWW-Authenticate", `Basic realm="cardorder", charset="UTF-8"`)
	}
	writeJSON(w, status, map[string]string{"error": code})
}

// grantable returns the issuers for which the caller may have a token: those of its
// credentials, and of its certificate where one is demanded.
func (d *d1Side) grantable(r *http.Request, id, secret string) []string {
	var granted []string
	refused, of := refusedCredentials, ""
	for _, in := range d.match(id, secret) {
		reason := d.certificate(r, in)
		if reason == "" {
			granted = append(granted, in.ID)
			continue
		}
		refused, of = reason, in.ID
	}
	if len(granted) == 0 {
		d.refuse(r, of, refused)
	}
	return granted
}

// match returns the issuers whose credentials these are. Every issuer is compared, so
// that the time taken tells nothing. RFC 6749 section 2.3.1 wants both encoded as in a
// form, which not everybody knows: both readings are good.
func (d *d1Side) match(id, secret string) []*Issuer {
	plainID, plainSecret := decoded(id), decoded(secret)
	var issuers []*Issuer
	for i := range d.Issuers {
		in := &d.Issuers[i]
		if in.WithoutToken {
			continue
		}
		as := equal(in.ClientID, id)&equal(in.ClientSecret, secret) |
			equal(in.ClientID, plainID)&equal(in.ClientSecret, plainSecret)
		if as == 1 && in.ClientID != "" && in.ClientSecret != "" {
			issuers = append(issuers, in)
		}
	}
	return issuers
}

// decoded is what a value says that is encoded as in a form, or the value when it is not.
func decoded(value string) string {
	if plain, err := url.QueryUnescape(value); err == nil {
		return plain
	}
	return value
}

// equal compares in a time that does not depend on where the two differ, nor
// on how long they are.
func equal(a, b string) int {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:])
}

func (t *tokens) sign(subject string, issuers []string) (string, error) {
	key := t.keys[0]
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: key.Secret},
		(&jose.SignerOptions{}).WithHeader("kid", key.ID))
	if err != nil {
		return "", fmt.Errorf("making a token signer: %w", err)
	}
	now := t.now()
	token, err := jwt.Signed(signer).Claims(tokenClaims{
		Claims: jwt.Claims{
			Issuer: tokenIssuer, Subject: subject,
			IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(tokenLifetime)),
		},
		Issuers: issuers,
	}).Serialize()
	if err != nil {
		return "", fmt.Errorf("signing a token: %w", err)
	}
	return token, nil
}

// verify checks that a token lets its bearer notify about an issuer, or tells why not.
func (t *tokens) verify(token, issuer string) refusal {
	if token == "" {
		return refusedNoToken
	}
	claims, refused := t.claims(token)
	if refused != "" {
		return refused
	}
	// Replicas may differ in their clocks by a minute.
	err := claims.ValidateWithLeeway(jwt.Expected{Issuer: tokenIssuer, Time: t.now()}, time.Minute)
	switch {
	case errors.Is(err, jwt.ErrExpired):
		return refusedTokenExpired
	case err != nil:
		return refusedToken
	case !slices.Contains(claims.Issuers, issuer):
		return refusedTokenIssuer
	}
	return ""
}

// claims is what a token says that one of our keys signed.
func (t *tokens) claims(token string) (claims tokenClaims, refused refusal) {
	sum := sha256.Sum256([]byte(token))
	t.mu.Lock()
	claims, ok := t.known[sum]
	t.mu.Unlock()
	if ok {
		return claims, ""
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.HS256})
	if err != nil || len(parsed.Headers) != 1 {
		return claims, refusedToken
	}
	key := slices.IndexFunc(t.keys, func(k TokenKey) bool { return k.ID == parsed.Headers[0].KeyID })
	if key < 0 || parsed.Claims(t.keys[key].Secret, &claims) != nil || claims.Expiry == nil {
		return claims, refusedToken
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil || len(t.known) >= maxKnownTokens {
		t.known = make(map[[sha256.Size]byte]tokenClaims)
	}
	t.known[sum] = claims
	return claims, ""
}
