package api

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func testTokens() *tokens {
	return &tokens{
		keys: []TokenKey{{ID: "new", Secret: []byte(strings.Repeat("n", 32))}, {ID: "old", Secret: []byte(strings.Repeat("o", 32))}},
		issuers: []Issuer{
			{ID: "ISSUER0001", ClientID: "d1", ClientSecret: "secret-1"},
			{ID: "ISSUER0002", ClientID: "d1-two", ClientSecret: "secret-2"},
		},
		now: time.Now,
	}
}

func grant(t *testing.T, tk *tokens, id, secret, form string) (*httptest.ResponseRecorder, map[string]any) {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/authz/d1/v1/oauth2/token", strings.NewReader(form))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if id != "" {
		r.SetBasicAuth(id, secret)
	}
	w := httptest.NewRecorder()
	tk.grant(w, r)
	var answer map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		t.Fatal(err)
	}
	return w, answer
}

func TestTokenIsForItsIssuerAndExpires(t *testing.T) {
	t.Parallel()
	tk := testTokens()
	w, answer := grant(t, tk, "d1", "secret-1", "grant_type=client_credentials&scope=notifications")
	if w.Code != http.StatusOK || answer["token_type"] != "Bearer" || answer["expires_in"] != "900" || answer["scope"] != "notifications" {
		t.Fatalf("answer %d %v", w.Code, answer)
	}
	token, _ := answer["access_token"].(string)
	if err := tk.verify(token, "ISSUER0001"); err != nil {
		t.Errorf("its own issuer: %v", err)
	}
	if err := tk.verify(token, "ISSUER0002"); err == nil {
		t.Error("the token is good for another issuer")
	}
	if err := tk.verify(token+"x", "ISSUER0001"); err == nil {
		t.Error("a forged token is good")
	}
	tk.now = func() time.Time { return time.Now().Add(tokenLifetime + 2*time.Minute) }
	if err := tk.verify(token, "ISSUER0001"); err == nil {
		t.Error("an expired token is good")
	}
}

// Keys rotate by adding the new one in front and dropping the old one a token's
// lifetime later.
func TestTokenKeysRotate(t *testing.T) {
	t.Parallel()
	before, after := testTokens(), testTokens()
	before.keys = before.keys[1:]
	_, answer := grant(t, before, "d1", "secret-1", "grant_type=client_credentials")
	token, _ := answer["access_token"].(string)
	if err := after.verify(token, "ISSUER0001"); err != nil {
		t.Errorf("signed with the old key: %v", err)
	}
	after.keys = after.keys[:1]
	if err := after.verify(token, "ISSUER0001"); err == nil {
		t.Error("a token of a dropped key is good")
	}
}

func TestTokenRefusals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, id, secret, form, code string
		status                       int
	}{
		{"no credentials", "", "", "grant_type=client_credentials", "invalid_client", 401},
		{"wrong secret", "d1", "secret-2", "grant_type=client_credentials", "invalid_client", 401},
		{"unknown client", "d2", "secret-1", "grant_type=client_credentials", "invalid_client", 401},
		{"no grant type", "d1", "secret-1", "", "invalid_request", 400},
		{"another grant", "d1", "secret-1", "grant_type=password", "unsupported_grant_type", 400},
		{"a huge body", "d1", "secret-1", "grant_type=" + strings.Repeat("x", maxTokenBody), "invalid_request", 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w, answer := grant(t, testTokens(), c.id, c.secret, c.form)
			if w.Code != c.status || answer["error"] != c.code {
				t.Errorf("answer %d %v, want %d %s", w.Code, answer, c.status, c.code)
			}
		})
	}
}
