package api

import (
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/prometheus/client_golang/prometheus"
)

func testD1Side() *d1Side {
	return newD1Side(Config{
		TokenKeys: []TokenKey{{ID: "new", Secret: []byte(strings.Repeat("n", 32))}, {ID: "old", Secret: []byte(strings.Repeat("o", 32))}},
		Issuers: []Issuer{
			{ID: "ISSUER0001", ClientID: "d1", ClientSecret: "secret-1", WithoutCertificate: true},
			{ID: "ISSUER0002", ClientID: "d1-two", ClientSecret: "secret-2", WithoutCertificate: true},
			{ID: "ISSUER0003", ClientID: "d1:tree", ClientSecret: "100% so+so/ü", WithoutCertificate: true},
			{ID: "ISSUER0004", WithoutToken: true, WithoutCertificate: true},
			{ID: "ISSUER0005", ClientID: "d1-five", ClientSecret: "secret-5"},
		},
		Metrics: NewMetrics(prometheus.NewRegistry(), nil), Log: slog.New(slog.DiscardHandler),
	})
}

const formType = "application/x-www-form-urlencoded"

func tokenRequest(id, secret, form string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/authz/d1/v1/oauth2/token", strings.NewReader(form))
	r.Header.Set("Content-Type", formType)
	if id != "" {
		r.SetBasicAuth(id, secret)
	}
	return r
}

func grant(t *testing.T, d *d1Side, r *http.Request) (*httptest.ResponseRecorder, map[string]any) {
	t.Helper()
	w := httptest.NewRecorder()
	d.grant(w, r)
	var answer map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		t.Fatal(err)
	}
	if w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("headers %v", w.Header())
	}
	return w, answer
}

const plainGrant = "grant_type=client_credentials"

func granted(t *testing.T, d *d1Side) string {
	t.Helper()
	w, answer := grant(t, d, tokenRequest("d1", "secret-1", plainGrant))
	token, _ := answer["access_token"].(string)
	if w.Code != http.StatusOK || token == "" {
		t.Fatalf("answer %d %v", w.Code, answer)
	}
	return token
}

func TestTokenIsForItsIssuerAndExpires(t *testing.T) {
	t.Parallel()
	d := testD1Side()
	w, answer := grant(t, d, tokenRequest("d1", "secret-1", plainGrant+"&scope=notifications+all&scopes=x"))
	if w.Code != http.StatusOK || answer["token_type"] != "Bearer" || answer["expires_in"] != "900" || answer["scope"] != "notifications all" {
		t.Fatalf("answer %d %v", w.Code, answer)
	}
	token, _ := answer["access_token"].(string)
	if reason := d.tokens.verify(token, "ISSUER0001"); reason != "" {
		t.Errorf("its own issuer: %v", reason)
	}
	if reason := d.tokens.verify(token, "ISSUER0002"); reason != refusedTokenIssuer {
		t.Errorf("for another issuer: %q", reason)
	}
	if reason := d.tokens.verify("", "ISSUER0001"); reason != refusedNoToken {
		t.Errorf("no token: %q", reason)
	}
	for i := range 2 * maxKnownTokens { // what is remembered is bounded
		other, err := d.tokens.sign(strconv.Itoa(i), []string{"ISSUER0001"})
		if err != nil || d.tokens.verify(other, "ISSUER0001") != "" || len(d.tokens.known) > maxKnownTokens {
			t.Fatalf("%d tokens are remembered (%v)", len(d.tokens.known), err)
		}
	}
	d.tokens.now = func() time.Time { return time.Now().Add(tokenLifetime + 2*time.Minute) }
	if reason := d.tokens.verify(token, "ISSUER0001"); reason != refusedTokenExpired {
		t.Errorf("an expired token: %q", reason)
	}
	if _, answer := grant(t, d, tokenRequest("d1", "secret-1", plainGrant)); answer["scope"] != nil {
		t.Errorf("a scope that nobody asked for: %v", answer)
	}
}

// A token is good when a key of ours signed it as we do, and in no other case.
func TestForgedTokens(t *testing.T) {
	t.Parallel()
	d := testD1Side()
	good := granted(t, d)
	parts := strings.Split(good, ".")
	now := time.Now()
	claims := func(change func(*tokenClaims)) tokenClaims {
		c := tokenClaims{
			Claims:  jwt.Claims{Issuer: tokenIssuer, IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(time.Minute))},
			Issuers: []string{"ISSUER0001"},
		}
		if change != nil {
			change(&c)
		}
		return c
	}
	signed := func(alg jose.SignatureAlgorithm, kid string, key []byte, c tokenClaims) string {
		t.Helper()
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", kid))
		if err != nil {
			t.Fatal(err)
		}
		token, err := jwt.Signed(signer).Claims(c).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	key, other := d.tokens.keys[0].Secret, []byte(strings.Repeat("x", 64))
	if reason := d.tokens.verify(signed(jose.HS256, "new", key, claims(nil)), "ISSUER0001"); reason != "" {
		t.Fatalf("the test's own token: %q", reason)
	}
	unsigned := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"new"}`)) + "." + parts[1] + "."
	for name, token := range map[string]string{
		"nonsense": "x", "two parts": "a.b", "another signature": parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2])),
		"more of it": good + "x", "no algorithm": unsigned,
		"another key":       signed(jose.HS256, "new", other[:32], claims(nil)),
		"another key's id":  signed(jose.HS256, "old", key, claims(nil)),
		"an unknown key id": signed(jose.HS256, "newer", key, claims(nil)),
		"no key id":         signed(jose.HS256, "", key, claims(nil)),
		"another algorithm": signed(jose.HS512, "new", other, claims(nil)),
		"another's":         signed(jose.HS256, "new", key, claims(func(c *tokenClaims) { c.Issuer = "somebody" })),
		"without an end":    signed(jose.HS256, "new", key, claims(func(c *tokenClaims) { c.Expiry = nil })),
		"not yet":           signed(jose.HS256, "new", key, claims(func(c *tokenClaims) { c.IssuedAt = jwt.NewNumericDate(now.Add(time.Hour)) })),
	} {
		if reason := d.tokens.verify(token, "ISSUER0001"); reason != refusedToken {
			t.Errorf("%s: %q", name, reason)
		}
	}
}

// Keys rotate by adding the new one in front and dropping the old one a token's
// lifetime later.
func TestTokenKeysRotate(t *testing.T) {
	t.Parallel()
	before, after := testD1Side(), testD1Side()
	before.tokens.keys = before.tokens.keys[1:]
	token := granted(t, before)
	if reason := after.tokens.verify(token, "ISSUER0001"); reason != "" {
		t.Errorf("signed with the old key: %v", reason)
	}
	after = testD1Side() // a restart
	after.tokens.keys = after.tokens.keys[:1]
	if reason := after.tokens.verify(token, "ISSUER0001"); reason != refusedToken {
		t.Errorf("a token of a dropped key: %q", reason)
	}
}

// Credentials are good as they are and encoded as in a form, which RFC 6749 wants.
func TestTokenCredentials(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ id, secret string }{
		"plain":    {"d1", "secret-1"},
		"encoded":  {url.QueryEscape("d1:tree"), url.QueryEscape("100% so+so/ü")},
		"needless": {"%64%31", "secret%2D1"},
	} {
		if w, answer := grant(t, testD1Side(), tokenRequest(c.id, c.secret, plainGrant+"&client_id="+url.QueryEscape(c.id))); w.Code != http.StatusOK {
			t.Errorf("%s: %d %v", name, w.Code, answer)
		}
	}
	d := testD1Side()
	d.Issuers[1].ClientID, d.Issuers[1].ClientSecret = "d1", "secret-1"
	token := granted(t, d)
	for _, issuer := range []string{"ISSUER0001", "ISSUER0002"} {
		if reason := d.tokens.verify(token, issuer); reason != "" {
			t.Errorf("%s shares its credentials: %q", issuer, reason)
		}
	}
}

func TestTokenRefusals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, id, secret, form, code string
		status                       int
	}{
		{"no credentials", "", "", plainGrant, "invalid_client", 401},
		{"credentials in the form", "", "", plainGrant + "&client_id=d1&client_secret=secret-1", "invalid_client", 401},
		{"wrong secret", "d1", "secret-2", plainGrant, "invalid_client", 401},
		{"no secret", "d1", "", plainGrant, "invalid_client", 401},
		{"unknown client", "d2", "secret-1", plainGrant, "invalid_client", 401},
		{"broken encoding", "d1", "secret-1%", plainGrant, "invalid_client", 401},
		{"an issuer without tokens", " ", "", plainGrant, "invalid_client", 401},
		{"an issuer that wants a certificate", "d1-five", "secret-5", plainGrant, "invalid_client", 401},
		{"no grant type", "d1", "secret-1", "", "invalid_request", 400},
		{"an empty grant type", "d1", "secret-1", "grant_type=", "invalid_request", 400},
		{"another grant", "d1", "secret-1", "grant_type=password", "unsupported_grant_type", 400},
		{"two grants", "d1", "secret-1", plainGrant + "&" + plainGrant, "invalid_request", 400},
		{"something unknown twice", "d1", "secret-1", plainGrant + "&x=1&x=2", "invalid_request", 400},
		{"credentials twice", "d1", "secret-1", plainGrant + "&client_secret=secret-1", "invalid_request", 400},
		{"another client", "d1", "secret-1", plainGrant + "&client_id=d2", "invalid_request", 400},
		{"a scope with quotes", "d1", "secret-1", plainGrant + "&scope=%22", "invalid_scope", 400},
		{"a scope of spaces", "d1", "secret-1", plainGrant + "&scope=a++b", "invalid_scope", 400},
		{"a broken form", "d1", "secret-1", plainGrant + "&scope=%zz", "invalid_request", 400},
		{"a huge body", "d1", "secret-1", "grant_type=" + strings.Repeat("x", maxTokenBody), "invalid_request", 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w, answer := grant(t, testD1Side(), tokenRequest(c.id, c.secret, c.form))
			if w.Code != c.status || answer["error"] != c.code || len(answer) != 1 {
				t.Errorf("answer %d %v, want %d %s", w.Code, answer, c.status, c.code)
			}
			if challenge := w.Header().Get("WWW-Authenticate"); (challenge != "") != (c.status == 401) {
				t.Errorf("challenge %q", challenge)
			}
		})
	}
	for name, change := range map[string]func(*http.Request){
		"JSON":                   func(r *http.Request) { r.Header.Set("Content-Type", "application/json") },
		"no media type":          func(r *http.Request) { r.Header.Del("Content-Type") },
		"parameters in the URL":  func(r *http.Request) { r.URL.RawQuery = "scope=a" },
		"two sets of credential": func(r *http.Request) { r.Header.Add("Authorization", "Bearer x") },
	} {
		r := tokenRequest("d1", "secret-1", plainGrant)
		change(r)
		if w, answer := grant(t, testD1Side(), r); w.Code != http.StatusBadRequest || answer["error"] != "invalid_request" {
			t.Errorf("%s: %d %v", name, w.Code, answer)
		}
	}
	r := tokenRequest("d1", "secret-1", plainGrant)
	r.Header.Set("Content-Type", formType+"; charset=utf-8")
	if w, answer := grant(t, testD1Side(), r); w.Code != http.StatusOK {
		t.Errorf("with a charset: %d %v", w.Code, answer)
	}
}
