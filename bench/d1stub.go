package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stubCommand is the argument that makes this binary a D1 that takes every order.
const stubCommand = "d1-stub"

// d1Stub is a D1 as a process of its own, the same for all that are compared: what
// it costs is in everybody's figures. It gives tokens, and takes every order with
// an operation of its own: at once, after some time, or not before it is told to.
type d1Stub struct {
	*process
	address string
}

// stubControl is what the stub is told.
type stubControl struct {
	Reset bool          // forget all that came
	Limit int64         // how many calls are answered; the others wait until it is raised
	Delay time.Duration // before each answer
}

// stubState is what the stub tells.
type stubState struct {
	Received, Answered, Waiting int64
	Repeats                     int64 // calls for a card that was ordered before
	Others                      int64 // calls that are no orders
}

// stubSample is one call that the stub got.
type stubSample struct {
	Path   string
	Header http.Header
	Body   []byte
}

func (s *site) startD1Stub(ctx context.Context) (*d1Stub, error) {
	addresses, err := freeAddresses(ctx, 1)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	d := &d1Stub{address: addresses[0]}
	if d.process, err = startProcess(s.dir, "d1stub", nil, self, stubCommand, d.address); err != nil {
		return nil, err
	}
	if err := d.awaitReady(ctx, "http://"+d.address+"/state"); err != nil {
		d.kill()
		return nil, err
	}
	return d, nil
}

func (d *d1Stub) control(ctx context.Context, c stubControl) error {
	body, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return d.call(ctx, http.MethodPost, "/control", bytes.NewReader(body), nil)
}

func (d *d1Stub) state(ctx context.Context) (s stubState, err error) {
	return s, d.call(ctx, http.MethodGet, "/state", nil, &s)
}

// arrivals are the moments, by the machine's clock, at which orders of cards came.
func (d *d1Stub) arrivals(ctx context.Context) (cards map[string]time.Time, err error) {
	return cards, d.call(ctx, http.MethodGet, "/arrivals", nil, &cards)
}

func (d *d1Stub) sample(ctx context.Context) (s stubSample, err error) {
	err = d.call(ctx, http.MethodGet, "/sample", nil, &s)
	if err == nil && len(s.Body) == 0 {
		err = errors.New("no order has reached the stub of D1")
	}
	return s, err
}

func (d *d1Stub) call(ctx context.Context, method, path string, body io.Reader, answer any) error {
	r, err := http.NewRequestWithContext(ctx, method, "http://"+d.address+path, body)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return fmt.Errorf("the stub of D1: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	if answer == nil {
		_, err := io.Copy(io.Discard, res.Body)
		return err
	}
	return json.NewDecoder(res.Body).Decode(answer)
}

// await waits for a state, for as long as orders come.
func (d *d1Stub) await(ctx context.Context, what string, reached func(stubState) bool) error {
	var s stubState
	for done := false; !done; {
		before := s.Received
		err := until(ctx, 20*time.Millisecond, what+" did not reach D1", func() (bool, error) {
			var err error
			s, err = d.state(ctx)
			done = err == nil && reached(s)
			return done || s.Received > before, err
		})
		if err == nil && !done {
			err = pause(ctx, 20*time.Millisecond)
		}
		if err != nil {
			return fmt.Errorf("%w (%+v)", err, s)
		}
	}
	return nil
}

// stubServer is the process.
type stubServer struct {
	mu       sync.Mutex
	gate     *stubGate
	delay    time.Duration
	counts   stubState
	arrivals map[string]time.Time
	sample   stubSample
}

// stubGate lets the first calls pass. A reset makes a new one, so that calls from
// before it stay where they are until their clients go.
type stubGate struct {
	limit  int64
	raised chan struct{} // closed when the limit changes
}

func runD1Stub(address string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: newStubServer(), ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		_ = srv.Close()
	}()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func newStubServer() *stubServer {
	return &stubServer{gate: &stubGate{raised: make(chan struct{})}, arrivals: make(map[string]time.Time)}
}

func (s *stubServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch path := r.URL.Path; {
	case strings.HasSuffix(path, production):
		s.produce(w, r)
	case strings.HasSuffix(path, "/token"):
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"access_token":"bench","token_type":"Bearer","expires_in":3600}`)
	case path == "/control":
		s.control(w, r)
	case path == "/state":
		s.mu.Lock()
		defer s.mu.Unlock()
		_ = json.NewEncoder(w).Encode(s.counts)
	case path == "/arrivals":
		s.mu.Lock()
		defer s.mu.Unlock()
		_ = json.NewEncoder(w).Encode(s.arrivals)
	case path == "/sample":
		s.mu.Lock()
		defer s.mu.Unlock()
		_ = json.NewEncoder(w).Encode(s.sample)
	default: // a question about a card: nothing here makes one necessary
		s.mu.Lock()
		s.counts.Others++
		s.mu.Unlock()
		w.WriteHeader(http.StatusNotFound)
	}
}

func (s *stubServer) control(w http.ResponseWriter, r *http.Request) {
	var c stubControl
	if err := json.NewDecoder(r.Body).Decode(&c); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay = c.Delay
	if c.Reset {
		s.counts, s.arrivals = stubState{}, make(map[string]time.Time)
		s.gate = &stubGate{limit: c.Limit, raised: make(chan struct{})}
		return
	}
	s.gate.limit = c.Limit
	close(s.gate.raised)
	s.gate.raised = make(chan struct{})
}

const production = "/operations:production" // the end of an order's path

func cardOf(path string) string {
	path = strings.TrimSuffix(path, production)
	return path[strings.LastIndexByte(path, '/')+1:]
}

func (s *stubServer) produce(w http.ResponseWriter, r *http.Request) {
	card := cardOf(r.URL.Path)
	now := time.Now()
	s.mu.Lock()
	gate := s.gate
	s.counts.Received++
	ticket := s.counts.Received
	first := s.sample.Body == nil
	if _, again := s.arrivals[card]; again {
		s.counts.Repeats++
	} else {
		s.arrivals[card] = now
	}
	s.mu.Unlock()
	if first {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.sample = stubSample{r.URL.Path, r.Header.Clone(), body}
		s.mu.Unlock()
	} else {
		_, _ = io.Copy(io.Discard, r.Body)
	}
	delay, ok := s.pass(r.Context(), gate, ticket)
	if !ok || delay > 0 && pause(r.Context(), delay) != nil {
		return
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	answer := make([]byte, 0, 64)
	answer = append(answer, `{"operationId":"`...)
	answer = hex.AppendEncode(answer, id[:])
	answer = append(answer, `"}`...)
	s.mu.Lock()
	if s.gate == gate {
		s.counts.Answered++
	}
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	_, _ = w.Write(answer)
}

// pass waits until so many calls may be answered. It is false when the caller went.
func (s *stubServer) pass(ctx context.Context, gate *stubGate, ticket int64) (delay time.Duration, ok bool) {
	waiting := false
	count := func(n int64) {
		if s.gate == gate {
			s.counts.Waiting += n
		}
	}
	for {
		s.mu.Lock()
		if ticket <= gate.limit {
			if waiting {
				count(-1)
			}
			delay = s.delay
			s.mu.Unlock()
			return delay, true
		}
		if !waiting {
			waiting = true
			count(1)
		}
		raised := gate.raised
		s.mu.Unlock()
		select {
		case <-raised:
		case <-ctx.Done():
			s.mu.Lock()
			count(-1)
			s.mu.Unlock()
			return 0, false
		}
	}
}
