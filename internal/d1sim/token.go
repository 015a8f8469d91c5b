package d1sim

import (
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

const (
	grantJWTBearer       = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	maxAssertionLifetime = 15 * time.Minute
	issuedAtLeeway       = 60 * time.Second
)

// principal is whoever may ask for tokens: an issuer for itself, an aggregator for its issuers.
type principal struct {
	keys      map[string]*ecdsa.PublicKey
	issuerIDs []string
}

type accessToken struct {
	issuerIDs []string
	expires   time.Time
}

type usedJTI struct{ issuer, jti string }

// token is the RFC 7523 grant: a signed assertion for an access token.
func (s *Sim) token(q *inquiry) answer {
	grantType, assertion, err := grant(q)
	if err != nil {
		return oauthError("invalid_request", err.Error())
	}
	if grantType != grantJWTBearer {
		return oauthError("unsupported_grant_type", "grant_type must be "+grantJWTBearer)
	}
	now := s.now(q.settings)
	claims, who, err := s.checkAssertion(assertion, now)
	if err != nil {
		return oauthError("invalid_grant", err.Error())
	}
	q.record.IssuerID = claims.Issuer

	token := rand.Text()
	lifetime := time.Duration(q.settings.TokenLifetime)
	if !s.keepToken(token, accessToken{who.issuerIDs, time.Now().Add(lifetime)}, claims, now) {
		return oauthError("invalid_grant", "jti was used before")
	}
	ans := jsonAnswer(http.StatusOK, map[string]any{
		"access_token": token,
		"token_type":   "Bearer",
		"expires_in":   int(lifetime.Seconds()),
		"scope":        "banking",
	})
	ans.headers = map[string]string{"Cache-Control": "no-store"}
	return ans
}

// grant reads the two parameters from a form or a JSON body.
func grant(q *inquiry) (grantType, assertion string, err error) {
	mediaType, _, _ := mime.ParseMediaType(q.Header.Get("Content-Type"))
	switch mediaType {
	case "application/x-www-form-urlencoded":
		form, err := url.ParseQuery(string(q.body))
		if err != nil {
			return "", "", errors.New("body is not a form")
		}
		if len(form["grant_type"]) != 1 || len(form["assertion"]) != 1 {
			return "", "", errors.New("grant_type and assertion must be sent once each")
		}
		return form.Get("grant_type"), form.Get("assertion"), nil
	case "application/json":
		var body struct {
			GrantType string `json:"grant_type"`
			Assertion string `json:"assertion"`
		}
		if err := decodeStrict(q.body, &body); err != nil || body.GrantType == "" || body.Assertion == "" {
			return "", "", errors.New("body must be a JSON object of grant_type and assertion")
		}
		return body.GrantType, body.Assertion, nil
	default:
		return "", "", errors.New("Content-Type must be application/x-www-form-urlencoded or application/json")
	}
}

// checkAssertion verifies signature and claims, all but the reuse of jti.
func (s *Sim) checkAssertion(assertion string, now time.Time) (jwt.Claims, principal, error) {
	fail := func(format string, args ...any) (jwt.Claims, principal, error) {
		return jwt.Claims{}, principal{}, fmt.Errorf(format, args...)
	}
	token, err := jwt.ParseSigned(assertion, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil || len(token.Headers) != 1 {
		return fail("assertion is not a JWT signed with ES256")
	}
	header := token.Headers[0]
	if typ, present := header.ExtraHeaders[jose.HeaderType]; present && typ != "JWT" {
		return fail("typ must be JWT")
	}
	if header.KeyID == "" {
		return fail("kid is required")
	}

	// Who signed is read first and believed only once the key of that principal has verified it.
	var claims jwt.Claims
	if err := token.UnsafeClaimsWithoutVerification(&claims); err != nil {
		return fail("claims can't be read")
	}
	who, known := s.tokenKeys[claims.Issuer]
	if !known {
		return fail("iss is not known")
	}
	key := who.keys[header.KeyID]
	if key == nil {
		return fail("kid is not known for this iss")
	}
	if err := token.Claims(key, &claims); err != nil {
		return fail("signature does not verify")
	}

	switch {
	case claims.Subject != claims.Issuer:
		return fail("sub must equal iss")
	case claims.Expiry == nil:
		return fail("exp is required")
	case !claims.Expiry.Time().After(now):
		return fail("exp has passed")
	case claims.Expiry.Time().Sub(now) > maxAssertionLifetime:
		return fail("exp is more than 15 minutes ahead")
	case claims.Audience != nil && !slices.Equal(claims.Audience, jwt.Audience{s.audience}):
		return fail("aud must be %s", s.audience)
	case claims.IssuedAt != nil && claims.IssuedAt.Time().Sub(now) > issuedAtLeeway:
		return fail("iat is in the future")
	case claims.NotBefore != nil && claims.NotBefore.Time().Sub(now) > issuedAtLeeway:
		return fail("nbf is in the future")
	}
	return claims, who, nil
}

// keepToken stores a new token, unless the jti of its assertion was used before.
func (s *Sim) keepToken(text string, token accessToken, claims jwt.Claims, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for old, until := range s.usedJTIs {
		if until.Before(now) {
			delete(s.usedJTIs, old)
		}
	}
	for old, t := range s.tokens {
		if t.expires.Before(time.Now()) {
			delete(s.tokens, old)
		}
	}
	if claims.ID != "" {
		jti := usedJTI{claims.Issuer, claims.ID}
		if _, used := s.usedJTIs[jti]; used {
			return false
		}
		s.usedJTIs[jti] = claims.Expiry.Time()
	}
	s.tokens[text] = token
	return true
}

// authorize checks the bearer token and the issuer of the path; nil means welcome.
func (s *Sim) authorize(q *inquiry) *answer {
	text := bearerOf(q.Request)
	s.mu.Lock()
	token, known := s.tokens[text]
	s.mu.Unlock()

	var refusal answer
	switch issuerID := q.record.IssuerID; {
	case !known || !token.expires.After(time.Now()):
		refusal = q.refuse(http.StatusUnauthorized, "AUTHORIZER_UNAUTHORIZED", "access token is missing, unknown or expired")
	case s.issuers[issuerID] == nil:
		refusal = q.refuse(http.StatusNotFound, "", "issuer is not known")
	case !slices.Contains(token.issuerIDs, issuerID):
		refusal = q.refuse(http.StatusForbidden, "", "access token is for another issuer")
	default:
		return nil
	}
	return &refusal
}

// bearerOf is the access token that a request carries; "" for none.
func bearerOf(r *http.Request) string {
	if text, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		return text
	}
	return ""
}

// revoke ends an access token before its time.
func (s *Sim) revoke(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, token)
}

// RevokeTokens ends all access tokens before their time.
func (s *Sim) RevokeTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}

// oauthError is the error body of RFC 6749.
func oauthError(code, description string) answer {
	ans := jsonAnswer(http.StatusBadRequest, map[string]string{"error": code, "error_description": description})
	ans.headers = map[string]string{"Cache-Control": "no-store"}
	return ans
}
