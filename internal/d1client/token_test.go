package d1client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// withTokenEndpoint is a working D1 whose token endpoint is h.
func withTokenEndpoint(t *testing.T, h http.HandlerFunc) (*fakeD1, Config) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	d1 := newFakeD1(t, accept)
	cfg := d1.config()
	cfg.TokenURL = srv.URL
	return d1, cfg
}

func TestAssertion(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ subject, audience, wantSubject, wantAudience string }{
		{"", "", testIssuer, "https://api.d1.thalescloud.io"},
		{"aggregator", "https://aud", "aggregator", "https://aud"},
	} {
		var form map[string][]string
		var agent string
		_, cfg := withTokenEndpoint(t, func(w http.ResponseWriter, r *http.Request) {
			_ = r.ParseForm()
			form, agent = r.PostForm, r.UserAgent()
			writeJSON(w, 200, map[string]any{"access_token": "t", "expires_in": 900})
		})
		cfg.AssertionSubject, cfg.Audience = tc.subject, tc.audience
		wantAnswer(t, newClient(t, cfg).Produce(callContext(t), sampleOrder()), Taken, ReasonAccepted)
		if len(form) != 2 || form["grant_type"][0] != jwtBearerGrant || agent != "cardorder" {
			t.Fatalf("form %v, agent %q", form, agent)
		}
		header, claims, err := parseAssertion(form["assertion"][0])
		if err != nil {
			t.Fatal(err)
		}
		if header.Algorithm != "ES256" || header.KeyID != "sig-1" || header.ExtraHeaders["typ"] != "JWT" {
			t.Errorf("header %+v", header)
		}
		if claims["iss"] != tc.wantSubject || claims["sub"] != tc.wantSubject || claims["aud"] != tc.wantAudience || len(claims["jti"].(string)) < 16 {
			t.Errorf("claims %v", claims)
		}
		at := func(name string) time.Duration { return time.Until(time.Unix(int64(claims[name].(float64)), 0)) }
		if at("exp") > 5*time.Minute || at("exp") < 4*time.Minute || at("iat") > -time.Minute || at("iat") < -2*time.Minute {
			t.Errorf("exp in %v, iat in %v", at("exp"), at("iat"))
		}
	}
}

func TestTokenIsFetchedOnceForAll(t *testing.T) {
	t.Parallel()
	const callers = 50
	var fetches atomic.Int64
	var started sync.WaitGroup
	started.Add(callers)
	d1, cfg := withTokenEndpoint(t, func(w http.ResponseWriter, _ *http.Request) {
		started.Wait()
		fetches.Add(1)
		writeJSON(w, 200, map[string]any{"access_token": "t", "expires_in": "900"})
	})
	c := newClient(t, cfg)
	ctx := callContext(t)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			started.Done()
			wantAnswer(t, c.Produce(ctx, sampleOrder()), Taken, ReasonAccepted)
		})
	}
	wg.Wait()
	if fetches.Load() != 1 || d1.orders.Load() != callers {
		t.Errorf("%d fetches, %d orders", fetches.Load(), d1.orders.Load())
	}
}

func TestRejectedTokenIsReplacedOnceForAll(t *testing.T) {
	t.Parallel()
	const callers = 50
	var first sync.WaitGroup // all callers get their 401 for the same token
	first.Add(callers)
	d1 := newFakeD1(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer token-1" {
			first.Done()
			first.Wait()
			w.WriteHeader(401)
			return
		}
		accept(w, r)
	})
	c := newClient(t, d1.config())
	ctx := callContext(t)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() { wantAnswer(t, c.Produce(ctx, sampleOrder()), Taken, ReasonAccepted) })
	}
	wg.Wait()
	if d1.tokens.Load() != 2 || d1.orders.Load() != 2*callers {
		t.Errorf("%d fetches, %d orders", d1.tokens.Load(), d1.orders.Load())
	}
}

func TestTokenIsRefreshedBeforeItExpires(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		expiresIn any
		life      time.Duration // as it is used
	}{
		{900, 870 * time.Second}, {"900", 870 * time.Second}, {100, 90 * time.Second}, {10, 9 * time.Second},
		{nil, 870 * time.Second}, {-5, 0},
	} {
		t.Run(fmt.Sprint(tc.expiresIn), func(t *testing.T) {
			t.Parallel()
			fetches := 0
			_, cfg := withTokenEndpoint(t, func(w http.ResponseWriter, _ *http.Request) {
				fetches++
				writeJSON(w, 200, map[string]any{"access_token": "t", "expires_in": tc.expiresIn})
			})
			c := newClient(t, cfg)
			var shift time.Duration
			start := time.Now()
			c.tokens.now = func() time.Time { return start.Add(shift) }
			call := func(at time.Duration, wantFetches int) {
				t.Helper()
				shift = at
				wantAnswer(t, c.Produce(callContext(t), sampleOrder()), Taken, ReasonAccepted)
				if fetches != wantFetches {
					t.Errorf("at %v: %d fetches, want %d", at, fetches, wantFetches)
				}
			}
			call(0, 1)
			if tc.life > 0 {
				call(tc.life-time.Millisecond, 1)
			}
			call(tc.life, 2)
		})
	}
}

func TestTokenWaitersHaveTheirOwnDeadlines(t *testing.T) {
	t.Parallel()
	asked, release := make(chan struct{}), make(chan struct{})
	d1, cfg := withTokenEndpoint(t, func(w http.ResponseWriter, _ *http.Request) {
		close(asked) // panics when there is a second fetch
		<-release
		writeJSON(w, 200, map[string]any{"access_token": "t", "expires_in": 900})
	})
	c := newClient(t, cfg)

	// The first caller, who started the fetch, gives up; the second gets the token.
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan Answer)
	go func() { first <- c.Produce(ctx, sampleOrder()) }()
	<-asked
	second := make(chan Answer)
	go func() { second <- c.Produce(context.WithoutCancel(ctx), sampleOrder()) }()
	cancel()
	wantAnswer(t, <-first, NotTaken, ReasonCancelled)
	late, cancelLate := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancelLate()
	wantAnswer(t, c.Produce(late, sampleOrder()), NotTaken, ReasonTimeout)
	close(release)
	wantAnswer(t, <-second, Taken, ReasonAccepted)
	if d1.orders.Load() != 1 {
		t.Errorf("%d orders", d1.orders.Load())
	}
}

func TestTokenFailures(t *testing.T) {
	t.Parallel()
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Retry-After", "11")
			w.Header().Set("Location", "/"+secretMark)
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	for name, tc := range map[string]struct {
		endpoint http.HandlerFunc
		reason   Reason
		want     *TokenError
	}{
		"refused": {answer(400, `{"error":"invalid_grant","error_description":"`+secretMark+`"}`), ReasonTokenRefused,
			&TokenError{400, "invalid_grant", 11 * time.Second}},
		"other code":    {answer(401, `{"error":"`+secretMark+`"}`), ReasonTokenRefused, &TokenError{401, "other", 11 * time.Second}},
		"html":          {answer(403, secretMark), ReasonTokenRefused, &TokenError{403, "", 11 * time.Second}},
		"rate limited":  {answer(429, ``), ReasonToken, &TokenError{429, "", 11 * time.Second}},
		"server error":  {answer(503, `{"error":"temporarily_unavailable"}`), ReasonToken, &TokenError{503, "temporarily_unavailable", 11 * time.Second}},
		"redirect":      {answer(307, ``), ReasonToken, &TokenError{307, "", 11 * time.Second}},
		"error in 200":  {answer(200, `{"error":"invalid_client"}`), ReasonToken, &TokenError{200, "invalid_client", 11 * time.Second}},
		"not json":      {answer(200, secretMark), ReasonToken, &TokenError{}},
		"no token":      {answer(200, `{"expires_in":900}`), ReasonToken, &TokenError{}},
		"unusable":      {answer(200, `{"access_token":"a b`+secretMark+`"}`), ReasonToken, &TokenError{}},
		"line break":    {answer(200, `{"access_token":"a\nX: `+secretMark+`"}`), ReasonToken, &TokenError{}},
		"too long":      {answer(200, `{"access_token":"`+strings.Repeat("a", maxToken+1)+`"}`), ReasonToken, &TokenError{}},
		"bad life":      {answer(200, `{"access_token":"a","expires_in":"soon"}`), ReasonToken, &TokenError{}},
		"10 MB":         {answer(200, strings.Repeat(secretMark, 1_000_000)), ReasonToken, &TokenError{}},
		"cut":           {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, ReasonToken, nil},
		"not even http": {hijackAndWrite(secretMark + "\r\n\r\n"), ReasonToken, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d1, cfg := withTokenEndpoint(t, tc.endpoint)
			c := newClient(t, cfg)
			a := c.Produce(callContext(t), sampleOrder())
			wantAnswer(t, a, NotTaken, tc.reason)
			te, _ := errors.AsType[*TokenError](a.Err)
			switch {
			case (te == nil) != (tc.want == nil), te != nil && *te != *tc.want:
				t.Errorf("error %+v (%v), want %+v", te, a.Err, tc.want)
			case te != nil && a.RetryAfter != te.RetryAfter:
				t.Errorf("RetryAfter %v", a.RetryAfter)
			}
			if s := c.ProductionStatus(callContext(t), testCard, ""); s.Finding != LookupFailed || s.Reason != tc.reason {
				t.Errorf("status %+v", s)
			}
			if d1.orders.Load() != 0 {
				t.Error("an order was sent without a token")
			}
		})
	}
}

func hijackAndWrite(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = io.WriteString(conn, s)
		_ = conn.Close()
	}
}

func TestTokenEndpointDownOrSlow(t *testing.T) {
	t.Parallel()
	d1 := newFakeD1(t, accept)
	cfg := d1.config()
	w := newWire(t, nil, nil)
	w.stop()
	cfg.TokenURL = "http://" + w.listener.Addr().String()
	wantAnswer(t, newClient(t, cfg).Produce(callContext(t), sampleOrder()), NotTaken, ReasonDial)

	_, cfg = withTokenEndpoint(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	cfg.TokenTimeout = 20 * time.Millisecond
	wantAnswer(t, newClient(t, cfg).Produce(callContext(t), sampleOrder()), NotTaken, ReasonToken)
}
