package d1client

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const accepted = "HTTP/1.1 202 Accepted\r\nContent-Length: 22\r\n\r\n" + `{"operationId":"op-1"}`

// wire is a D1 at the level of bytes: what it does with a connection is a test's
// to say, and it counts every byte and every whole request that came.
type wire struct {
	listener net.Listener
	conns    sync.WaitGroup
	bytes    atomic.Int64

	mu   sync.Mutex
	seen map[string]int // whole requests by correlation id
}

// newWire serves each connection by calling answer for each request on it (n counts
// from 1) until answer returns false.
func newWire(t *testing.T, tlsConfig *tls.Config, answer func(conn net.Conn, n int) bool) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: l, seen: map[string]int{}}
	w.conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if tlsConfig != nil {
				conn = tls.Server(conn, tlsConfig)
			}
			w.conns.Go(func() {
				defer func() { _ = conn.Close() }()
				br := bufio.NewReader(countingReader{conn, &w.bytes})
				for n := 1; w.read(br) && answer(conn, n); n++ {
				}
			})
		}
	})
	t.Cleanup(w.stop)
	return w
}

type countingReader struct {
	io.Reader
	n *atomic.Int64
}

func (r countingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.n.Add(int64(n))
	return n, err
}

func (w *wire) read(br *bufio.Reader) bool {
	req, err := http.ReadRequest(br)
	if err != nil {
		return false
	}
	if _, err := io.Copy(io.Discard, req.Body); err != nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[req.Header.Get("X-Correlation-Id")]++
	return true
}

func (w *wire) requests(id string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[id]
}

// stop returns when every connection has ended, so that nothing can come after it.
// The client must have been closed.
func (w *wire) stop() {
	_ = w.listener.Close()
	w.conns.Wait()
}

func (w *wire) client(t *testing.T, change func(*Config)) *Client {
	t.Helper()
	cfg := newFakeD1(t, accept).config()
	cfg.BaseURL = "http://" + w.listener.Addr().String() + "/banking/v1"
	if change != nil {
		change(&cfg)
	}
	return newClient(t, cfg)
}

func TestConnectionFaults(t *testing.T) {
	t.Parallel()
	write := func(s string) func(net.Conn, int) bool {
		return func(conn net.Conn, _ int) bool {
			_, _ = io.WriteString(conn, s)
			return false
		}
	}
	for name, tc := range map[string]struct {
		answer  func(net.Conn, int) bool
		outcome Outcome
		reasons []Reason
	}{
		"cut before the answer": {write(""), Unknown, []Reason{ReasonCut}},
		"reset": {func(conn net.Conn, _ int) bool {
			_ = conn.(*net.TCPConn).SetLinger(0)
			return false
		}, Unknown, []Reason{ReasonCut}},
		"cut in the status line": {write("HTTP/1.1 20"), Unknown, []Reason{ReasonCut, ReasonUnreadable}},
		"cut in the headers":     {write("HTTP/1.1 202 Accepted\r\nX: y"), Unknown, []Reason{ReasonCut}},
		"cut in the body": {write("HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\n" + `{"operationId":"op-1"}`),
			Taken, []Reason{ReasonAcceptedWithoutID}},
		"refusal cut in the body": {write("HTTP/1.1 400 Bad\r\nContent-Length: 100\r\n\r\n" + `{"error":"x"}`), Refused, []Reason{ReasonRefused}},
		"bad chunks":              {write("HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n" + secretMark), Taken, []Reason{ReasonAcceptedWithoutID}},
		"not http":                {write(secretMark + " " + secretMark + "\r\n\r\n"), Unknown, []Reason{ReasonUnreadable}},
		"malformed status":        {write("HTTP/1.1 " + secretMark + "\r\n\r\n"), Unknown, []Reason{ReasonUnreadable}},
		"malformed header":        {write("HTTP/1.1 202 Accepted\r\n" + secretMark + "\r\n\r\n"), Unknown, []Reason{ReasonUnreadable}},
		"headers without end":     {write("HTTP/1.1 202 Accepted\r\nX: " + strings.Repeat(secretMark, 100_000)), Unknown, []Reason{ReasonUnreadable, ReasonCut}},
		"interim without end":     {write(strings.Repeat("HTTP/1.1 103 Early Hints\r\nX: "+secretMark+"\r\n\r\n", 10_000)), Unknown, []Reason{ReasonUnreadable, ReasonCut}},
		"interim, then accepted":  {write("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + accepted), Taken, []Reason{ReasonAccepted}},
		"switched protocols": {func(conn net.Conn, _ int) bool {
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
			_, _ = conn.Read(make([]byte, 1)) // the client must end it, without waiting
			return false
		}, Unknown, []Reason{ReasonUnreadable}},
		"status 999": {write("HTTP/1.1 999 What\r\n\r\n"), Unknown, []Reason{ReasonUnreadable}},
		"endless body": {func(conn net.Conn, _ int) bool {
			_, _ = io.WriteString(conn, "HTTP/1.1 202 Accepted\r\n\r\n")
			for {
				if _, err := io.WriteString(conn, secretMark); err != nil {
					return false
				}
			}
		}, Taken, []Reason{ReasonAcceptedWithoutID}},
		"tls alert to plain": {write("\x15\x03\x01\x00\x02\x02\x28"), Unknown, []Reason{ReasonUnreadable, ReasonCut}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWire(t, nil, tc.answer)
			c := w.client(t, nil)
			a := c.Produce(callContext(t), sampleOrder())
			wantAnswer(t, a, tc.outcome, tc.reasons...)
			if (a.Err == nil) != (a.Reason == ReasonAccepted || a.Status >= 900 || a.Status == 101) {
				t.Errorf("err %v", a.Err)
			}
			c.Close()
			w.stop()
			if n := w.requests("corr-1"); n != 1 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

func TestDialRefused(t *testing.T) {
	t.Parallel()
	w := newWire(t, nil, nil)
	w.stop()
	p := sampleOrder()
	p.BeforeSend = func() error { t.Error("BeforeSend called without a connection"); return nil }
	wantAnswer(t, w.client(t, nil).Produce(callContext(t), p), NotTaken, ReasonDial)
	s := w.client(t, nil).ProductionStatus(callContext(t), testCard, "")
	if s.Finding != LookupFailed || s.Reason != ReasonDial || s.Err == nil {
		t.Errorf("%+v", s)
	}
}

func TestDrippingBodyEndsWithTheCall(t *testing.T) {
	t.Parallel()
	d1 := newFakeD1(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(202)
		_, _ = io.WriteString(w, `{"operationId":`)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	a := newClient(t, d1.config()).Produce(ctx, sampleOrder())
	wantAnswer(t, a, Taken, ReasonAcceptedWithoutID)
	if !errors.Is(a.Err, context.DeadlineExceeded) {
		t.Errorf("err %v", a.Err)
	}
}

func TestNoAnswerInTime(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{}, 2)
	d1 := newFakeD1(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	c := newClient(t, d1.config())

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	wantAnswer(t, c.Produce(ctx, sampleOrder()), Unknown, ReasonTimeout)

	<-arrived
	ctx, cancel = context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	wantAnswer(t, c.Produce(ctx, sampleOrder()), Unknown, ReasonCancelled)

	a := c.Produce(ctx, sampleOrder())
	wantAnswer(t, a, NotTaken, ReasonCancelled)
	if d1.orders.Load() != 2 {
		t.Errorf("%d orders", d1.orders.Load())
	}
}

func TestBeforeSendForbids(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", secure), func(t *testing.T) {
			t.Parallel()
			w, change := wireWithTLS(t, secure, func(conn net.Conn, _ int) bool {
				_, err := io.WriteString(conn, accepted)
				return err == nil
			})
			c := w.client(t, change)
			lease := errors.New("lease is over")
			forbidden := sampleOrder()
			forbidden.CorrelationID = "forbidden"
			calls := 0
			forbidden.BeforeSend = func() error { calls++; return lease }

			// The client's own hook has run when this one is called: from here on, and
			// before the transport has the request, the connection must take nothing.
			closed := 0
			watched := httptrace.WithClientTrace(callContext(t), &httptrace.ClientTrace{
				GotConn: func(info httptrace.GotConnInfo) {
					if _, err := info.Conn.Write([]byte("x")); errors.Is(err, net.ErrClosed) {
						closed++
					}
				},
			})

			// On a new connection, and on one kept from a good call.
			a := c.Produce(watched, forbidden)
			wantAnswer(t, a, NotTaken, ReasonNotSent)
			if !errors.Is(a.Err, lease) {
				t.Errorf("err %v", a.Err)
			}
			wantAnswer(t, c.Produce(callContext(t), sampleOrder()), Taken, ReasonAccepted)
			sent := w.bytes.Load()
			wantAnswer(t, c.Produce(watched, forbidden), NotTaken, ReasonNotSent)

			// Nor is a call sent that was cancelled while BeforeSend ran.
			ctx, cancel := context.WithCancel(t.Context())
			ending := forbidden
			ending.BeforeSend = func() error { cancel(); return ctx.Err() }
			if a := c.Produce(ctx, ending); a.Outcome != NotTaken {
				t.Errorf("%v %v", a.Outcome, a.Reason)
			}

			c.Close()
			w.stop()
			if calls != 2 || closed != 2 || w.requests("forbidden") != 0 || w.bytes.Load() != sent {
				t.Errorf("calls %d, closed %d, requests %d, bytes %d want %d",
					calls, closed, w.requests("forbidden"), w.bytes.Load(), sent)
			}
		})
	}
}

// A kept connection that D1 cuts after the order was written is where a transport
// may be tempted to send it again.
func TestCutIdleConnectionIsNotReplayed(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", secure), func(t *testing.T) {
			t.Parallel()
			w, change := wireWithTLS(t, secure, func(conn net.Conn, n int) bool {
				if n == 1 {
					_, _ = io.WriteString(conn, accepted)
				}
				return n == 1
			})
			c := w.client(t, change)
			wantAnswer(t, c.Produce(callContext(t), sampleOrder()), Taken, ReasonAccepted)
			second := sampleOrder()
			second.CorrelationID = "corr-2"
			asked := 0
			second.BeforeSend = func() error { asked++; return nil }
			wantAnswer(t, c.Produce(callContext(t), second), Unknown, ReasonCut)
			c.Close()
			w.stop()
			if n := w.requests("corr-2"); n != 1 || asked != 1 {
				t.Errorf("%d requests, BeforeSend %d times", n, asked)
			}
		})
	}
}

// Whatever a connection does, an answer must be true: NotTaken means that D1 has not
// seen the order, Taken that it has, and nothing is ever delivered twice.
func TestAnswersAreTrueOnBadConnections(t *testing.T) {
	t.Parallel()
	const callers, calls = 8, 100
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", secure), func(t *testing.T) {
			t.Parallel()
			var turn atomic.Int64
			w, change := wireWithTLS(t, secure, func(conn net.Conn, _ int) bool {
				switch n := turn.Add(1); {
				case n%7 == 0: // taken, no answer
					return false
				case n%3 == 0: // answered, and closed while idle
					_, _ = io.WriteString(conn, accepted)
					return false
				default:
					_, err := io.WriteString(conn, accepted)
					return err == nil
				}
			})
			c := w.client(t, change)
			ctx := callContext(t)
			answers := make(map[string]Answer)
			var mu sync.Mutex
			var wg sync.WaitGroup
			for caller := range callers {
				wg.Go(func() {
					for i := range calls {
						p := sampleOrder()
						p.CorrelationID = fmt.Sprintf("%d-%d", caller, i)
						if i%11 == 0 {
							p.BeforeSend = func() error { return errors.New("no") }
						}
						a := c.Produce(ctx, p)
						mu.Lock()
						answers[p.CorrelationID] = a
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			c.Close()
			w.stop()
			count := map[Outcome]int{}
			for id, a := range answers {
				count[a.Outcome]++
				n := w.requests(id)
				if n > 1 || a.Outcome == Taken && n != 1 || a.Outcome == NotTaken && n != 0 || a.Outcome == Refused {
					t.Errorf("%s: %v %v %v, seen %d times", id, a.Outcome, a.Reason, a.Err, n)
				}
			}
			t.Log(count)
			if count[Taken] == 0 || count[Unknown] == 0 || count[NotTaken] == 0 {
				t.Errorf("outcomes %v: the test proves nothing", count)
			}
		})
	}
}

func TestWaitingForAConnectionIsNotTaken(t *testing.T) {
	t.Parallel()
	busy, release := make(chan struct{}), make(chan struct{})
	d1 := newFakeD1(t, func(w http.ResponseWriter, r *http.Request) {
		close(busy)
		<-release
		accept(w, r)
	})
	cfg := d1.config()
	cfg.MaxConnsPerHost = 1
	c := newClient(t, cfg)
	first := make(chan Answer)
	go func() { first <- c.Produce(context.WithoutCancel(t.Context()), sampleOrder()) }()
	<-busy
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	wantAnswer(t, c.Produce(ctx, sampleOrder()), NotTaken, ReasonTimeout)
	close(release)
	wantAnswer(t, <-first, Taken, ReasonAccepted)
}

func wireWithTLS(t *testing.T, secure bool, answer func(net.Conn, int) bool) (*wire, func(*Config)) {
	t.Helper()
	if !secure {
		return newWire(t, nil, answer), nil
	}
	ca := newAuthority(t)
	w := newWire(t, &tls.Config{Certificates: []tls.Certificate{*ca.issue("d1")}}, answer)
	return w, func(cfg *Config) {
		cfg.BaseURL = strings.Replace(cfg.BaseURL, "http:", "https:", 1)
		cfg.TLS = &tls.Config{RootCAs: ca.pool}
	}
}
