package client_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cardorder/client"
)

// These tests run on synctest's clock: hours pass in no time, and to the
// nanosecond. The service is played by a transport.

// script plays the service: it gives one answer after the other.
type script struct {
	t       *testing.T
	answers []func(*http.Request) (*http.Response, error)
	keys    []string // Idempotency-Key of each request
	bodies  []string
	open    atomic.Int32 // bodies of answers that were not closed
}

func (s *script) RoundTrip(r *http.Request) (*http.Response, error) {
	n := len(s.keys)
	if n == len(s.answers) {
		s.t.Errorf("attempt %d was not expected", n+1)
		return nil, net.ErrClosed
	}
	s.keys = append(s.keys, r.Header.Get("Idempotency-Key"))
	if r.Body != nil {
		body, _ := io.ReadAll(r.Body)
		r.Body.Close()
		s.bodies = append(s.bodies, string(body))
	}
	res, err := s.answers[n](r)
	if res != nil {
		s.open.Add(1)
		res.Body = &counted{ReadCloser: res.Body, open: &s.open}
	}
	return res, err
}

type counted struct {
	io.ReadCloser
	open *atomic.Int32
}

func (c *counted) Close() error {
	c.open.Add(-1)
	return c.ReadCloser.Close()
}

type step = func(*http.Request) (*http.Response, error)

// says answers; header is name, value, name, value ...
func says(status int, body string, header ...string) step {
	return func(*http.Request) (*http.Response, error) {
		h := http.Header{}
		for i := 0; i < len(header); i += 2 {
			h.Set(header[i], header[i+1])
		}
		return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body))}, nil
	}
}

// refuses answers with a problem of the service.
func refuses(status int, name string, header ...string) step {
	return says(status, fmt.Sprintf(`{"type":"urn:cardorder:problem:%s","title":"No","status":%d}`, name, status),
		append(header, "Content-Type", "application/problem+json")...)
}

func breaks(err error) step {
	return func(*http.Request) (*http.Response, error) { return nil, err }
}

// hangs never answers.
func hangs(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// isCut answers with the beginning of an order.
func isCut(*http.Request) (*http.Response, error) {
	body := io.MultiReader(strings.NewReader(`{"id":`), failing{io.ErrUnexpectedEOF})
	return &http.Response{StatusCode: 201, Header: http.Header{}, Body: io.NopCloser(body)}, nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

const answered = `{"id":"o-1","status":"ACCEPTED","version":1,"a":{"newer":"member"}}`

func newClient(t *testing.T, transport http.RoundTripper, adjust ...func(*client.Config)) *client.Client {
	t.Helper()
	cfg := client.Config{
		BaseURL: "https://cards.bank.example/", IssuerID: "ISSUER0001", Token: client.NewToken("secret-token"),
		HTTPClient: &http.Client{Transport: transport},
	}
	for _, f := range adjust {
		f(&cfg)
	}
	c, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// simple is an order with nothing in it but what tells it apart.
var simple = client.NewOrder{CardID: "card-1", IssuerRequestID: "request-1"}

func TestWhatIsTriedAgain(t *testing.T) {
	t.Parallel()
	ok := says(201, answered)
	for name, c := range map[string]struct {
		first step
		again bool
	}{
		"429":                {refuses(429, "too-many"), true},
		"500":                {refuses(500, "internal"), true},
		"502 of a proxy":     {says(502, "<html>"), true},
		"503":                {refuses(503, "unavailable"), true},
		"504":                {says(504, ""), true},
		"refused connection": {breaks(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}), true},
		"cut connection":     {breaks(io.EOF), true},
		"what is not HTTP":   {breaks(errors.New(`malformed HTTP response "x"`)), true},
		"half an answer":     {isCut, true},
		"no answer":          {hangs, true},

		"400":                {refuses(400, "invalid-request"), false},
		"400 incomplete":     {refuses(400, "incomplete-body"), false},
		"401":                {refuses(401, "unauthorized"), false},
		"403":                {refuses(403, "forbidden"), false},
		"404":                {refuses(404, "unknown-order"), false},
		"408 of a proxy":     {says(408, ""), false},
		"409":                {refuses(409, "duplicate-order"), false},
		"409 of a batch":     {refuses(409, "batch-in-progress"), false},
		"413":                {refuses(413, "too-large"), false},
		"422":                {refuses(422, "idempotency-conflict"), false},
		"501":                {says(501, ""), false},
		"301":                {says(301, "", "Location", "https://elsewhere.example/"), false},
		"307":                {says(307, "", "Location", "https://elsewhere.example/"), false},
		"wrong certificate":  {breaks(&tls.CertificateVerificationError{Err: errors.New("x")}), false},
		"TLS with no server": {breaks(tls.RecordHeaderError{Msg: "x"}), false},
		"not JSON":           {says(200, "<html>welcome"), false},
		"not an order":       {says(200, "{}"), false},
		"an endless answer":  {func(*http.Request) (*http.Response, error) { return endless(), nil }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &script{t: t, answers: []step{c.first, ok}}
				placed, err := newClient(t, s).PlaceOrder(t.Context(), &simple, "k-1")
				want := 1
				if c.again {
					want = 2
				}
				if (err == nil) != c.again || len(s.keys) != want {
					t.Errorf("%d attempts, %v", len(s.keys), err)
				}
				if c.again && (placed.ID != "o-1" || s.keys[0] != "k-1" || s.keys[1] != "k-1" || s.bodies[0] != s.bodies[1] || s.bodies[0] == "") {
					t.Errorf("the attempts differ: %q %q", s.keys, s.bodies)
				}
				if err != nil && !strings.HasPrefix(err.Error(), "cardorder: placing an order: ") {
					t.Errorf("the error does not say what was being done: %v", err)
				}
				if n := s.open.Load(); n != 0 {
					t.Errorf("%d bodies were left open", n)
				}
			})
		})
	}
}

func endless() *http.Response {
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(spaces{})}
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	copy(p, bytes.Repeat([]byte{' '}, len(p)))
	return len(p), nil
}

func TestPauses(t *testing.T) {
	t.Parallel()
	const backoff, longest = 250 * time.Millisecond, 30 * time.Second
	for name, c := range map[string]struct {
		status int
		asked  func() string // Retry-After
		least  time.Duration
		most   time.Duration
	}{
		"not asked for":       {503, nil, 0, backoff},
		"seconds":             {503, func() string { return "7" }, 7 * time.Second, 7*time.Second + backoff},
		"seconds with a 429":  {429, func() string { return "2" }, 2 * time.Second, 2*time.Second + backoff},
		"a date":              {503, func() string { return in(9 * time.Second) }, 9 * time.Second, 9*time.Second + backoff},
		"too long":            {503, func() string { return "3600" }, longest, longest + backoff},
		"far too long":        {503, func() string { return "99999999999999999999" }, 0, backoff},
		"a date too far":      {503, func() string { return in(48 * time.Hour) }, longest, longest + backoff},
		"a date gone by":      {503, func() string { return in(-time.Hour) }, 0, backoff},
		"less than nothing":   {503, func() string { return "-3" }, 0, backoff},
		"neither of the two":  {503, func() string { return "soon" }, 0, backoff},
		"asked for by a 502":  {502, func() string { return "1" }, time.Second, time.Second + backoff},
		"nothing is asked as": {503, func() string { return "0" }, 0, backoff},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var header []string
				if c.asked != nil {
					header = []string{"Retry-After", c.asked()}
				}
				s := &script{t: t, answers: []step{says(c.status, "", header...), says(200, answered)}}
				begun := time.Now()
				if _, err := newClient(t, s).Order(t.Context(), "o-1"); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begun); took < c.least || took > c.most {
					t.Errorf("it waited %v, want %v to %v", took, c.least, c.most)
				}
			})
		})
	}
}

func in(d time.Duration) string { return time.Now().Add(d).UTC().Format(http.TimeFormat) }

func TestGivingUp(t *testing.T) {
	t.Parallel()
	down := refuses(503, "unavailable")
	for name, c := range map[string]struct {
		config   client.Config
		attempts int
		longest  time.Duration
	}{
		"by default":   {client.Config{}, 6, (250 + 500 + 1000 + 2000 + 4000) * time.Millisecond},
		"at once":      {client.Config{MaxAttempts: 1}, 1, 0},
		"after many":   {client.Config{MaxAttempts: 80}, 80, 80 * 30 * time.Second},
		"in no hurry":  {client.Config{MaxAttempts: 3, Backoff: time.Hour, MaxWait: time.Minute}, 3, 2 * time.Minute},
		"in a loop of": {client.Config{MaxAttempts: 4, Backoff: 1, MaxWait: 1}, 4, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &script{t: t}
				for range c.attempts {
					s.answers = append(s.answers, down) //nolint:bodyclose // an attempt closes it
				}
				begun := time.Now()
				_, err := newClient(t, s, func(cfg *client.Config) {
					cfg.MaxAttempts, cfg.Backoff, cfg.MaxWait = c.config.MaxAttempts, c.config.Backoff, c.config.MaxWait
				}).Order(t.Context(), "o-1")
				p, ok := errors.AsType[*client.Problem](err)
				if !ok || p.Type != client.ProblemUnavailable || len(s.keys) != c.attempts {
					t.Errorf("%d attempts, %v", len(s.keys), err)
				}
				if took := time.Since(begun); took > c.longest {
					t.Errorf("it took %v", took)
				}
				if c.attempts > 1 && !strings.Contains(err.Error(), fmt.Sprintf("gave up after %d attempts", c.attempts)) {
					t.Errorf("the error does not say that it gave up: %v", err)
				}
			})
		})
	}
}

// Nothing is sent after the context has ended, and the error says both.
func TestEndOfContext(t *testing.T) {
	t.Parallel()
	down := refuses(503, "unavailable", "Retry-After", "10")
	soon := refuses(503, "unavailable")
	for name, c := range map[string]struct {
		answers []step
		problem bool // the error also wraps what the last answer said
	}{
		"while it waits":             {[]step{down}, true},
		"in the first attempt":       {[]step{hangs}, false},
		"in an attempt after others": {[]step{soon, hangs}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &script{t: t, answers: c.answers}
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				begun := time.Now()
				_, err := newClient(t, s).PlaceOrder(ctx, &simple, "")
				_, problem := errors.AsType[*client.Problem](err)
				if !errors.Is(err, context.DeadlineExceeded) || problem != c.problem || len(s.keys) != len(c.answers) {
					t.Errorf("%d attempts, %v", len(s.keys), err)
				}
				if took := time.Since(begun); took != 5*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
	t.Run("before", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := newClient(t, &script{t: t}).Order(ctx, "o-1"); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// An attempt that hangs is given up, as long as there is time for another one.
func TestTimeoutOfAnAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{t: t, answers: []step{hangs, says(200, answered)}}
		begun := time.Now()
		if _, err := newClient(t, s, func(cfg *client.Config) { cfg.Timeout = time.Minute }).Order(t.Context(), "o-1"); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took < time.Minute || took > time.Minute+250*time.Millisecond {
			t.Errorf("it took %v", took)
		}
	})
}

// slow is a file of which a byte comes every ten seconds.
type slow struct{ left int }

func (s *slow) Read(p []byte) (int, error) {
	<-time.After(10 * time.Second)
	if s.left == 0 {
		return 0, io.EOF
	}
	s.left--
	p[0] = 'x'
	return 1, nil
}

func (*slow) Close() error { return nil }

// An upload takes as long as it takes, but for a service that stands still.
func TestPatienceOfUploads(t *testing.T) {
	t.Parallel()
	upload := client.Upload{IdempotencyKey: "b", Open: func() (io.ReadCloser, error) { return &slow{left: 100}, nil }}
	synctest.Test(t, func(t *testing.T) {
		s := &script{t: t, answers: []step{says(201, `{"id":"b-1"}`)}}
		begun := time.Now()
		if _, err := newClient(t, s).UploadBatch(t.Context(), upload); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took < 1000*time.Second || len(s.bodies[0]) != 100 {
			t.Errorf("it took %v and sent %d bytes", took, len(s.bodies[0]))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		opened := 0
		upload.Open = func() (io.ReadCloser, error) {
			opened++
			return io.NopCloser(strings.NewReader("0123456789")), nil
		}
		var got []byte
		_, err := newClient(t, roundTripper(func(r *http.Request) (*http.Response, error) {
			defer r.Body.Close()
			if opened == 1 {
				_, _ = io.ReadFull(r.Body, make([]byte, 5))
				return hangs(r)
			}
			got, _ = io.ReadAll(r.Body)
			return says(201, `{"id":"b-1"}`)(r)
		})).UploadBatch(t.Context(), upload)
		if err != nil || opened != 2 || string(got) != "0123456789" {
			t.Errorf("opened %d times, %q, %v", opened, got, err)
		}
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// pulse is a stream of which a line comes every twenty seconds, until it stops.
type pulse struct{ line, stops int }

func (p *pulse) Read(b []byte) (int, error) {
	if p.line == p.stops {
		return 0, io.EOF
	}
	<-time.After(20 * time.Second)
	p.line++
	return copy(b, fmt.Sprintf("{\"line\":%d}\n", p.line)), nil
}

func (*pulse) Close() error { return nil }

// Who works on a result for an hour does not lose the stream.
func TestPatienceOfStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{t: t, answers: []step{func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: &pulse{stops: 5}}, nil
		}}}
		n := 0
		for result, err := range newClient(t, s).BatchResults(t.Context(), "b-1", "") {
			n++
			if err != nil || result.Line != n {
				t.Fatal(n, result, err)
			}
			<-time.After(time.Hour)
		}
		if n != 5 || s.open.Load() != 0 {
			t.Errorf("%d results, %d bodies open", n, s.open.Load())
		}
	})
}
