package d1client

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestChangeSendsWhatD1Expects(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		style PathStyle
		path  string
		uri   string
	}{
		{"", "", "/banking/v1/issuers/issuer0001/physicalCards/card-1/operations:change"},
		{PathLowercase, "", "/banking/v1/issuers/issuer0001/physicalcards/card-1/operations/change"},
		{PathLowercase, "orders:update", "/banking/v1/issuers/issuer0001/physicalcards/card-1/orders:update"},
	} {
		t.Run(tc.uri, func(t *testing.T) {
			t.Parallel()
			var got *http.Request
			var body []byte
			d1 := newFakeD1(t, func(w http.ResponseWriter, r *http.Request) {
				got = r
				body, _ = io.ReadAll(r.Body)
				accept(w, r)
			})
			cfg := d1.config()
			cfg.PathStyle, cfg.ChangePath = tc.style, tc.path
			a := newClient(t, cfg).Change(callContext(t), sampleOrder())
			wantAnswer(t, a, Taken, ReasonAccepted)
			if a.OperationID != "op-1" || a.CorrelationID != "corr-1" {
				t.Errorf("answer %+v", a)
			}
			if got.Method != http.MethodPost || got.RequestURI != tc.uri || got.Header.Get("Idempotency-Key") != "" ||
				got.Header.Get("Authorization") != "Bearer token-1" || !bytes.Equal(body, sampleOrder().Body) {
				t.Errorf("%s %s with %v and %q", got.Method, got.RequestURI, got.Header, body)
			}
		})
	}
}

// A change is refused by every 4xx that is about it; what says nothing about it is as
// for an order.
func TestChangeOutcomeOfEveryStatus(t *testing.T) {
	t.Parallel()
	d1 := newFakeD1(t, func(w http.ResponseWriter, r *http.Request) {
		var status int
		_, _ = fmt.Sscanf(r.Header.Get("X-Correlation-Id"), "status-%d", &status)
		w.WriteHeader(status)
	})
	c := newClient(t, d1.config())
	for status := 200; status <= 599; status++ {
		p := sampleOrder()
		p.CorrelationID = fmt.Sprintf("status-%d", status)
		want := Unknown
		switch {
		case status < 300:
			want = Taken
		case status == 401, status == 425, status == 429:
			want = NotTaken
		case status == 408:
		case status >= 400 && status < 500:
			want = Refused
		}
		if a := c.Change(callContext(t), p); a.Outcome != want || a.Status != status {
			t.Errorf("%d: %v %v %v, want %v", status, a.Outcome, a.Reason, a.Err, want)
		}
	}
}

func TestChangeThatIsNotSent(t *testing.T) {
	t.Parallel()
	d1 := newFakeD1(t, accept)
	c := newClient(t, d1.config())
	wantAnswer(t, c.Change(callContext(t), Call{CardID: "../x", Body: []byte("{}")}), NotTaken, ReasonInvalidCall)
	retired := errors.New("retired")
	p := sampleOrder()
	p.BeforeSend = func() error { return retired }
	a := c.Change(callContext(t), p)
	wantAnswer(t, a, NotTaken, ReasonNotSent)
	if !errors.Is(a.Err, retired) || d1.orders.Load() != 0 {
		t.Errorf("err %v, requests %d", a.Err, d1.orders.Load())
	}
}

func TestChangeLosesItsAnswer(t *testing.T) {
	t.Parallel()
	d1 := newFakeD1(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	wantAnswer(t, newClient(t, d1.config()).Change(callContext(t), sampleOrder()), Unknown, ReasonCut)
	if n := d1.orders.Load(); n != 1 {
		t.Errorf("%d requests: the transport has repeated it", n)
	}
}

func TestChangePaths(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]bool{
		"operations:change": true, "operations/change": true, "a/b/c/d": true, "Change_1-x": true,
		"": false, "/change": false, "change/": false, "a//b": false, "../x": false, "a/./b": false, "a?b": false, "a#b": false,
		"a b": false, "%2e": false, "a/b/c/d/e": false, strings.Repeat("a", 65): false, "é": false,
	} {
		if IsChangePath(path) != want {
			t.Errorf("%q: %v", path, !want)
		}
		cfg := Config{PathStyle: PathReference, ChangePath: path}
		if _, err := New(cfg); path != "" && want == strings.Contains(err.Error(), "ChangePath") {
			t.Errorf("%q: %v", path, err)
		}
	}
}
