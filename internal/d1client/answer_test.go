package d1client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestProduceSendsWhatD1Expects(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		style PathStyle
		uri   string
	}{
		{"", "/banking/v1/issuers/issuer0001/physicalCards/card-1/operations:production"},
		{PathReference, "/banking/v1/issuers/issuer0001/physicalCards/card-1/operations:production"},
		{PathLowercase, "/banking/v1/issuers/issuer0001/physicalcards/card-1/operations/production"},
	} {
		t.Run(string(tc.style), func(t *testing.T) {
			t.Parallel()
			var got *http.Request
			var body []byte
			d1 := newFakeD1(t, func(w http.ResponseWriter, r *http.Request) {
				got = r
				body, _ = io.ReadAll(r.Body)
				accept(w, r)
			})
			cfg := d1.config()
			cfg.PathStyle = tc.style
			a := newClient(t, cfg).Produce(callContext(t), sampleOrder())
			wantAnswer(t, a, Taken, ReasonAccepted)
			if a.OperationID != "op-1" || a.Status != 202 || a.CorrelationID != "corr-1" || a.Err != nil ||
				a.Duration <= 0 || a.ServerDate.IsZero() {
				t.Errorf("answer %+v", a)
			}
			if got.Method != http.MethodPost || got.RequestURI != tc.uri || got.Proto != "HTTP/1.1" {
				t.Errorf("%s %s %s", got.Method, got.RequestURI, got.Proto)
			}
			for name, want := range map[string]string{
				"Authorization": "Bearer token-1", "Content-Type": "application/json", "Accept": "application/json",
				"User-Agent": "cardorder", "X-Correlation-Id": "corr-1", "Idempotency-Key": "", "Accept-Encoding": "",
			} {
				if v := got.Header.Get(name); v != want {
					t.Errorf("%s: %q, want %q", name, v, want)
				}
			}
			if !bytes.Equal(body, sampleOrder().Body) || got.ContentLength != int64(len(body)) {
				t.Errorf("body %q", body)
			}
		})
	}
}

func TestProduceOutcomeOfEveryStatus(t *testing.T) {
	t.Parallel()
	explained := `{"errorCode":"FIELD_INVALID_VALUE","error":"line1"}`
	want := map[int]struct {
		outcome Outcome
		reason  Reason
	}{
		400: {Refused, ReasonRefused}, 401: {NotTaken, ReasonUnauthorized}, 403: {Refused, ReasonRefused},
		404: {Refused, ReasonRefused}, 408: {Unknown, ReasonRequestTimeout}, 409: {Unknown, ReasonConflict},
		425: {NotTaken, ReasonTooEarly}, 429: {NotTaken, ReasonRateLimited}, 503: {Unknown, ReasonUnavailable},
	}
	d1 := newFakeD1(t, func(w http.ResponseWriter, r *http.Request) {
		var status int
		_, _ = fmt.Sscanf(r.Header.Get("X-Correlation-Id"), "status-%d", &status)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, explained)
	})
	c := newClient(t, d1.config())
	ctx := callContext(t)
	for status := 200; status <= 599; status++ {
		p := sampleOrder()
		p.CorrelationID = fmt.Sprintf("status-%d", status)
		a := c.Produce(ctx, p)
		w, ok := want[status]
		if !ok {
			switch status / 100 {
			case 2:
				w.outcome, w.reason = Taken, ReasonAcceptedWithoutID
			case 3:
				w.outcome, w.reason = Unknown, ReasonRedirect
			case 4:
				w.outcome, w.reason = Unknown, ReasonClientError
			case 5:
				w.outcome, w.reason = Unknown, ReasonServerError
			}
		}
		if a.Outcome != w.outcome || a.Reason != w.reason || a.Status != status {
			t.Errorf("%d: %v %v %v", status, a.Outcome, a.Reason, a.Err)
		}
		if explains := status >= 400; a.HasErrorBody != explains {
			t.Errorf("%d: HasErrorBody %v", status, a.HasErrorBody)
		}
	}
}

func TestProduce503BySetting(t *testing.T) {
	t.Parallel()
	d1 := newFakeD1(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(503)
	})
	cfg := d1.config()
	cfg.ServiceUnavailableIsNotTaken = true
	a := newClient(t, cfg).Produce(callContext(t), sampleOrder())
	wantAnswer(t, a, NotTaken, ReasonUnavailable)
	if a.RetryAfter != 7*time.Second {
		t.Errorf("RetryAfter %v", a.RetryAfter)
	}
}

func TestProduceOddBodies(t *testing.T) {
	t.Parallel()
	big := strings.Repeat(secretMark, 1_000_000) // over 10 MB
	for name, tc := range map[string]struct {
		status  int
		body    string
		outcome Outcome
		reason  Reason
		check   func(Answer) bool
	}{
		"html accepted":   {200, "<html>" + secretMark, Taken, ReasonAcceptedWithoutID, func(a Answer) bool { return a.OperationID == "" }},
		"empty accepted":  {204, "", Taken, ReasonAcceptedWithoutID, nil},
		"bad id":          {202, `{"operationId":"a b"}`, Taken, ReasonAcceptedWithoutID, nil},
		"id not a string": {202, `{"operationId":7}`, Taken, ReasonAcceptedWithoutID, nil},
		"long id":         {202, `{"operationId":"` + strings.Repeat("a", 65) + `"}`, Taken, ReasonAcceptedWithoutID, nil},
		"new members":     {202, `{"x":[1],"operationId":"` + strings.Repeat("a", 64) + `"}`, Taken, ReasonAccepted, nil},
		"10 MB accepted":  {202, big, Taken, ReasonAcceptedWithoutID, func(a Answer) bool { return a.Err != nil }},
		"10 MB refused":   {400, big, Refused, ReasonRefused, func(a Answer) bool { return a.Err != nil && !a.HasErrorBody }},
		"10 MB failed":    {500, big, Unknown, ReasonServerError, nil},
		"html refused":    {404, "<html>", Refused, ReasonRefused, func(a Answer) bool { return !a.HasErrorBody }},
		"array refused":   {400, `["errorCode"]`, Refused, ReasonRefused, func(a Answer) bool { return !a.HasErrorBody }},
		"empty object":    {400, `{}`, Refused, ReasonRefused, func(a Answer) bool { return !a.HasErrorBody }},
		"null":            {403, `null`, Refused, ReasonRefused, func(a Answer) bool { return !a.HasErrorBody }},
		"error only": {400, `{"error":"cardId is wrong"}`, Refused, ReasonRefused, func(a Answer) bool {
			return a.HasErrorBody && a.ErrorCode == "" && a.ErrorText == "cardId is wrong"
		}},
		"code only": {400, `{"errorCode":"CRYPTO_ERROR","error":7}`, Refused, ReasonRefused, func(a Answer) bool {
			return a.HasErrorBody && a.ErrorCode == "CRYPTO_ERROR" && a.ErrorText == ""
		}},
		"code of another form": {400, `{"errorCode":"bad code"}`, Refused, ReasonRefused, func(a Answer) bool {
			return a.HasErrorBody && a.ErrorCode == ""
		}},
		"number for a code": {400, `{"errorCode":"4111111111111111"}`, Refused, ReasonRefused, func(a Answer) bool {
			return a.HasErrorBody && a.ErrorCode == ""
		}},
		"values in the text": {400, `{"error":"pan 4111 1111\n\u0000é` + strings.Repeat("x", 300) + `"}`, Refused, ReasonRefused, func(a Answer) bool {
			return a.ErrorText == "pan ..."
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d1 := newFakeD1(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tc.status)
				_, _ = io.WriteString(w, tc.body)
			})
			a := newClient(t, d1.config()).Produce(callContext(t), sampleOrder())
			wantAnswer(t, a, tc.outcome, tc.reason)
			if tc.check != nil && !tc.check(a) {
				t.Errorf("answer %+v", a)
			}
		})
	}
}

func TestProduceFollowsNoRedirect(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 302, 303, 307, 308} {
		for _, location := range []string{"/banking/v1/elsewhere", "", ":%zz" + secretMark} {
			d1 := newFakeD1(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", location)
				w.WriteHeader(status)
			})
			wantAnswer(t, newClient(t, d1.config()).Produce(callContext(t), sampleOrder()), Unknown, ReasonRedirect)
			if n := d1.orders.Load(); n != 1 {
				t.Errorf("%d: %d requests", status, n)
			}
		}
	}
}

func TestInvalidCallSendsNothing(t *testing.T) {
	t.Parallel()
	d1 := newFakeD1(t, accept)
	c := newClient(t, d1.config())
	for _, p := range []Call{
		{CardID: "", Body: []byte("{}")},
		{CardID: "../x", Body: []byte("{}")},
		{CardID: strings.Repeat("c", 49), Body: []byte("{}")},
		{CardID: testCard},
	} {
		wantAnswer(t, c.Produce(callContext(t), p), NotTaken, ReasonInvalidCall)
	}
	if s := c.ProductionStatus(callContext(t), "a/b", ""); s.Finding != LookupFailed || s.Reason != ReasonInvalidCall {
		t.Errorf("%+v", s)
	}
	if d1.tokens.Load()+d1.orders.Load() != 0 {
		t.Error("something was sent")
	}
}

func TestCorrelationIDIsMadeWhenUnusable(t *testing.T) {
	t.Parallel()
	var sent string
	d1 := newFakeD1(t, func(w http.ResponseWriter, r *http.Request) {
		sent = r.Header.Get("X-Correlation-Id")
		accept(w, r)
	})
	c := newClient(t, d1.config())
	for _, id := range []string{"", "a b", strings.Repeat("a", 65), "a\r\nX: y"} {
		p := sampleOrder()
		p.CorrelationID = id
		a := c.Produce(callContext(t), p)
		if a.CorrelationID != sent || !isID(sent, maxID) {
			t.Errorf("%q: sent %q, told %q", id, sent, a.CorrelationID)
		}
	}
}

func TestUnauthorizedGetsOneNewToken(t *testing.T) {
	t.Parallel()
	d1 := newFakeD1(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer token-1" {
			w.WriteHeader(401)
			return
		}
		accept(w, r)
	})
	asked := 0
	p := sampleOrder()
	p.BeforeSend = func() error { asked++; return nil }
	wantAnswer(t, newClient(t, d1.config()).Produce(callContext(t), p), Taken, ReasonAccepted)
	if asked != 2 || d1.orders.Load() != 2 || d1.tokens.Load() != 2 {
		t.Errorf("BeforeSend %d, orders %d, tokens %d", asked, d1.orders.Load(), d1.tokens.Load())
	}
}

func TestUnauthorizedTwice(t *testing.T) {
	t.Parallel()
	d1 := newFakeD1(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) })
	c := newClient(t, d1.config())
	for range 3 {
		wantAnswer(t, c.Produce(callContext(t), sampleOrder()), NotTaken, ReasonUnauthorized)
	}
	// Two for the first call, one more for each further.
	if d1.orders.Load() != 6 || d1.tokens.Load() != 4 {
		t.Errorf("orders %d, tokens %d", d1.orders.Load(), d1.tokens.Load())
	}
}

func TestBeforeSendMayStopTheSecondTry(t *testing.T) {
	t.Parallel()
	d1 := newFakeD1(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) })
	lease := errors.New("lease is over")
	asked := 0
	p := sampleOrder()
	p.BeforeSend = func() error {
		if asked++; asked == 2 {
			return lease
		}
		return nil
	}
	a := newClient(t, d1.config()).Produce(callContext(t), p)
	wantAnswer(t, a, NotTaken, ReasonNotSent)
	if !errors.Is(a.Err, lease) || d1.orders.Load() != 1 {
		t.Errorf("err %v, orders %d", a.Err, d1.orders.Load())
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2025, 3, 4, 5, 6, 7, 0, time.UTC)
	stamp := func(d time.Duration) string { return now.Add(d).Format(http.TimeFormat) }
	for _, tc := range []struct {
		value, date string
		want        time.Duration
	}{
		{"", "", 0}, {"soon", "", 0}, {"-5", "", 0}, {"0", "", 0}, {"30", "", 30 * time.Second},
		{"3601", "", time.Hour}, {"99999999999999999999999", "", time.Hour},
		{stamp(time.Minute), "", time.Minute}, {stamp(-time.Minute), "", 0}, {stamp(48 * time.Hour), "", time.Hour},
		{stamp(2 * time.Minute), stamp(time.Minute), time.Minute}, // by D1's own clock
	} {
		h := http.Header{}
		h.Set("Retry-After", tc.value)
		h.Set("Date", tc.date)
		if got := retryAfter(h, now); got != tc.want {
			t.Errorf("%q at %q: %v, want %v", tc.value, tc.date, got, tc.want)
		}
	}
}

func TestReasonsAreClosed(t *testing.T) {
	t.Parallel()
	known := map[Reason]bool{}
	for _, r := range Reasons() {
		if known[r] || r == "" {
			t.Errorf("%q twice or empty", r)
		}
		known[r] = true
	}
	for status := range 1000 {
		if r := statusReason(status); !known[r] {
			t.Errorf("%d: %q is not in Reasons", status, r)
		}
	}
}

func TestOrdersAndTokensCannotBePrinted(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	type holder struct {
		Order Call
		token *accessToken
		inner secret
		Op    Operation
	}
	op, err := ParseOperation([]byte(`{"details":{"reason":"` + secretMark + `"}}`))
	if err != nil {
		t.Fatal(err)
	}
	h := holder{sampleOrder(), &accessToken{secret: newSecret(secretMark)}, newSecret(secretMark), op}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&b, verb, h)
		fmt.Fprintf(&b, verb, *h.token)
		fmt.Fprintf(&b, verb, h.Order)
		fmt.Fprintf(&b, verb, h.Op)
	}
	_ = json.NewEncoder(&b).Encode(map[string]any{"secret": h.inner, "list": []secret{h.inner}})
	fmt.Fprint(&b, h.inner, &h.inner, h.inner.GoString())
	text, _ := h.inner.MarshalText()
	b.Write(text)
	log := slog.New(slog.NewJSONHandler(&b, nil))
	log.Info("x", "order", h.Order, "secret", h.inner, "token", h.token, "operation", op)
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "order", h.Order, "secret", h.inner, "operation", op)
	inDecimal := "115 51 99 114 51 116" // secretMark's beginning as a byte slice prints
	for _, leak := range []string{secretMark, fmt.Sprintf("%x", secretMark), inDecimal, "czNjcjN0LW00cms"} {
		if strings.Contains(b.String(), leak) {
			t.Errorf("printed: %s", leak)
		}
	}
}
