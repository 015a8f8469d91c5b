package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
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

// tokens is the token endpoint that D1 calls, and the check of its tokens.
type tokens struct {
	keys    []TokenKey
	issuers []Issuer
	now     func() time.Time
}

// maxTokenBody is the largest token request taken, in bytes.
const maxTokenBody = 8 << 10

// grant answers a token request (RFC 6749 section 4.4: client credentials).
func (t *tokens) grant(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	id, secret, ok := r.BasicAuth()
	issuers := t.match(id, secret)
	if !ok || len(issuers) == 0 {
		w.Header().Set("WWW-Authenticate", `Basic realm="cardorder"`)
		writeOAuthError(w, http.StatusUnauthorized, "invalid_client")
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxTokenBody)
	if err := r.ParseForm(); err != nil {
		writeOAuthError(w, http.StatusBadRequest, "invalid_request")
		return
	}
	switch r.PostForm.Get("grant_type") {
	case "client_credentials":
	case "":
		writeOAuthError(w, http.StatusBadRequest, "invalid_request")
		return
	default:
		writeOAuthError(w, http.StatusBadRequest, "unsupported_grant_type")
		return
	}
	token, err := t.sign(id, issuers)
	if err != nil {
		writeOAuthError(w, http.StatusInternalServerError, "server_error")
		return
	}
	answer := map[string]string{
		"access_token": token, "token_type": "Bearer",
		// D1 wants a string here (D1: token endpoint hosted by the issuer).
		"expires_in": strconv.Itoa(int(tokenLifetime / time.Second)),
	}
	if scope := r.PostForm.Get("scope"); correlationPattern.MatchString(scope) {
		answer["scope"] = scope
	}
	writeJSON(w, http.StatusOK, answer)
}

func writeOAuthError(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": code}) // the caller is gone if this fails
}

// match returns the issuers whose credentials these are. Every issuer is
// compared, so that the time taken tells nothing.
func (t *tokens) match(id, secret string) []string {
	var issuers []string
	for _, in := range t.issuers {
		if equal(in.ClientID, id)&equal(in.ClientSecret, secret) == 1 {
			issuers = append(issuers, in.ID)
		}
	}
	return issuers
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

var errToken = errors.New("the token is not valid")

// verify checks that a token lets its bearer notify about an issuer. It needs
// no database.
func (t *tokens) verify(token, issuer string) error {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.HS256})
	if err != nil || len(parsed.Headers) != 1 {

		return errToken
	}
	for _, key := range t.keys {
		if key.ID != parsed.Headers[0].KeyID {
			continue
		}
		var claims tokenClaims
		if err := parsed.Claims(key.Secret, &claims); err != nil {
			return errToken
		}
		// Replicas may differ in their clocks by a minute.
		err := claims.ValidateWithLeeway(jwt.Expected{Issuer: tokenIssuer, Time: t.now()}, time.Minute)
		if err != nil || claims.Expiry == nil || !slices.Contains(claims.Issuers, issuer) {
			return errToken
		}
		return nil
	}
	return errToken
}
