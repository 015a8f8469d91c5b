package d1sim_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"cardorder/internal/d1sim"

	"github.com/go-jose/go-jose/v4"
)

func TestTokenIsGranted(t *testing.T) {
	t.Parallel()
	b := newBureau(t, d1sim.Settings{TokenLifetime: d1sim.Duration(90 * time.Second)})

	minimal := b.claims(issuerID)
	for _, name := range []string{"aud", "iat", "jti"} {
		delete(minimal, name)
	}
	got := b.grant(b.assertion(minimal))
	if got.status != http.StatusOK || got.header.Get("X-Simulator") != "d1sim" {
		t.Fatalf("got %d %s", got.status, got.body)
	}
	grant := got.json(t)
	if grant["token_type"] != "Bearer" || grant["expires_in"] != 90.0 || grant["scope"] == "" {
		t.Errorf("got %v", grant)
	}

	got = b.send(http.MethodPost, "/authz/v1/oauth2/token", toJSON(t, map[string]string{
		"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": b.assertion(b.claims(issuerID)),
	}), http.Header{"Content-Type": {"application/json"}})
	if got.status != http.StatusOK {
		t.Errorf("JSON body: got %d %s", got.status, got.body)
	}
}

func TestTokenIsRefused(t *testing.T) {
	t.Parallel()
	b := newBureau(t, d1sim.Settings{})
	with := func(name string, value any) string {
		claims := b.claims(issuerID)
		claims[name] = value
		return b.assertion(claims)
	}
	without := func(name string) string {
		claims := b.claims(issuerID)
		delete(claims, name)
		return b.assertion(claims)
	}
	signed := func(alg jose.SignatureAlgorithm, key any, header map[jose.HeaderKey]any) string {
		return sign(t, alg, key, header, b.claims(issuerID))
	}
	used := b.assertion(b.claims(issuerID))
	b.grant(used)

	for name, assertion := range map[string]string{
		"not a JWT":           "x.y.z",
		"HS256":               signed(jose.HS256, bytes.Repeat([]byte{1}, 32), map[jose.HeaderKey]any{"kid": kid}),
		"no kid":              signed(jose.ES256, b.signingKey, nil),
		"unknown kid":         signed(jose.ES256, b.signingKey, map[jose.HeaderKey]any{"kid": "other"}),
		"other typ":           signed(jose.ES256, b.signingKey, map[jose.HeaderKey]any{"kid": kid, "typ": "at+jwt"}),
		"another key":         signed(jose.ES256, newKey(t), map[jose.HeaderKey]any{"kid": kid}),
		"unknown iss":         with("iss", "bank000009"),
		"sub is not iss":      with("sub", lowercaseID),
		"no sub":              without("sub"),
		"no exp":              without("exp"),
		"exp has passed":      with("exp", time.Now().Add(-time.Second).Unix()),
		"exp too far":         with("exp", time.Now().Add(15*time.Minute+5*time.Second).Unix()),
		"another aud":         with("aud", "https://example.com"),
		"several aud":         with("aud", []string{d1sim.DefaultAudience, "https://example.com"}),
		"iat in the future":   with("iat", time.Now().Add(90*time.Second).Unix()),
		"jti used before":     used,
		"nbf in the future":   with("nbf", time.Now().Add(90*time.Second).Unix()),
		"claims not readable": with("exp", "tomorrow"),
	} {
		got := b.grant(assertion)
		if got.status != http.StatusBadRequest || got.json(t)["error"] != "invalid_grant" {
			t.Errorf("%s: got %d %s", name, got.status, got.body)
		}
	}

	form := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	for name, c := range map[string]struct {
		header http.Header
		body   string
		want   string
	}{
		"another grant":   {form, "grant_type=client_credentials&assertion=x", "unsupported_grant_type"},
		"no assertion":    {form, "grant_type=x", "invalid_request"},
		"assertion twice": {form, "grant_type=x&assertion=a&assertion=b", "invalid_request"},
		"not a form":      {form, "%zz", "invalid_request"},
		"no content type": {nil, "grant_type=x&assertion=a", "invalid_request"},
		"not JSON":        {http.Header{"Content-Type": {"application/json"}}, "{", "invalid_request"},
	} {
		got := b.send(http.MethodPost, "/authz/v1/oauth2/token", c.body, c.header)
		if got.status != http.StatusBadRequest || got.json(t)["error"] != c.want {
			t.Errorf("%s: got %d %s, want %s", name, got.status, got.body, c.want)
		}
	}
}

func TestTokenBelongsToItsIssuers(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	reference, lowercase := productionURL("card-1"), strings.NewReplacer(issuerID, lowercaseID,
		"physicalCards", "physicalcards", "operations:production", "operations/production").Replace(productionURL("card-1"))
	aggregator := b.fetchToken(b.claims("aggregator"))

	for name, c := range map[string]struct {
		authorization string
		path          string
		want          int
		errorCode     any
	}{
		"no token":              {"", reference, 401, "AUTHORIZER_UNAUTHORIZED"},
		"unknown token":         {"Bearer x", reference, 401, "AUTHORIZER_UNAUTHORIZED"},
		"not bearer":            {"Basic " + b.token, reference, 401, "AUTHORIZER_UNAUTHORIZED"},
		"another issuer":        {"Bearer " + b.token, lowercase, 403, nil},
		"unknown issuer":        {"Bearer " + b.token, strings.Replace(reference, issuerID, "bank000009", 1), 404, nil},
		"aggregator, bad body":  {"Bearer " + aggregator, reference, 400, nil},
		"aggregator, lowercase": {"Bearer " + aggregator, lowercase, 400, nil},
	} {
		header := http.Header{"Content-Type": {"application/json"}, "Authorization": {c.authorization}}
		got := b.send(http.MethodPost, c.path, "[]", header)
		if got.status != c.want || got.json(t)["errorCode"] != c.errorCode {
			t.Errorf("%s: got %d %s, want %d %v", name, got.status, got.body, c.want, c.errorCode)
		}
	}
}

func TestPathStyles(t *testing.T) {
	t.Parallel()
	b := newBureau(t, still)
	b.token = b.fetchToken(b.claims("aggregator"))
	const issuers = "/banking/v1/issuers/"

	for path, want := range map[string]int{
		"POST " + issuers + issuerID + "/physicalCards/card-1/operations:production":    202,
		"POST " + issuers + issuerID + "/physicalcards/card-1/operations/production":    404,
		"POST " + issuers + lowercaseID + "/physicalcards/card-1/operations/production": 202,
		"POST " + issuers + lowercaseID + "/physicalCards/card-1/operations:production": 404,
		"GET " + issuers + issuerID + "/physicalcards/card-1/productionStatus":          404,
		"GET " + issuers + lowercaseID + "/physicalCards/card-1/productionStatus":       404,
		"POST " + issuers + issuerID + "/physicalCards/card-1/operations:tracking":      404,
		"GET " + issuers + issuerID + "/physicalCards/card-1/operations:production":     405,
	} {
		method, url, _ := strings.Cut(path, " ")
		got := b.send(method, url, toJSON(t, b.thales("request-1")), b.header())
		if got.status != want {
			t.Errorf("%s: got %d %s, want %d", path, got.status, got.body, want)
		}
	}
	for _, name := range []string{"productionStatus", "productionstatus"} {
		if got := b.send("GET", issuers+lowercaseID+"/physicalcards/card-1/"+name, "", b.header()); got.status != 200 {
			t.Errorf("%s in lowercase: %d", name, got.status)
		}
	}
	if got := len(b.sim.History(d1sim.Filter{Kind: d1sim.KindOther})); got != 2 {
		t.Errorf("%d requests of no known path in the history, want 2", got)
	}
}
