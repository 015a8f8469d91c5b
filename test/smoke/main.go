// Command smoke kills the service where it hurts: with the example
// configuration it runs PostgreSQL, the simulator and the service as processes
// of their own, places fifty orders, kills the service with SIGKILL in the
// middle of them, again and again, and starts it anew. In the end every order
// must have arrived and the simulator must have made exactly one card for each.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"cardorder/internal/d1client"
	"cardorder/internal/d1sim"
	"cardorder/internal/local"
	"cardorder/internal/pgrun"
)

const (
	orderCount = 50
	killCount  = 3
	issuer     = "ISSUER0001"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	err := run(ctx)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "smoke: FAILED:", err)
		os.Exit(1)
	}
	fmt.Println("smoke: passed")
}

// smoke is one run.
type smoke struct {
	dir        string
	env        []string
	api        string
	token      string
	management *d1sim.Client
	encrypter  *d1client.Encrypter
	server     *exec.Cmd
}

func run(ctx context.Context) (err error) {
	s := &smoke{}
	if s.dir, err = os.MkdirTemp("", "cardorder-smoke-"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w (logs are in %s)", err, s.dir)
			return
		}
		_ = os.RemoveAll(s.dir)
	}()
	step("building")
	build := exec.CommandContext(ctx, "go", "build", "-o", s.dir+string(filepath.Separator), "./cmd/server", "./cmd/d1sim")
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("building: %w", err)
	}
	step("starting PostgreSQL")
	pg, err := pgrun.Start(ctx, pgrun.Config{Fsync: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pg.Stop()) }()
	s.env = append(os.Environ(), "CARDORDER_DATABASE_URL="+pg.URL(""))
	if err := s.configure(ctx); err != nil {
		return err
	}
	step("starting the simulator and the service")
	sim, err := s.start("d1sim", s.simArgs()...)
	if err != nil {
		return err
	}
	defer stopProcess(sim)
	if err := s.readKeys(ctx); err != nil {
		return err
	}
	if err := s.startServer(ctx); err != nil {
		return err
	}
	defer func() { stopProcess(s.server) }()
	if err := s.placeAndKill(ctx); err != nil {
		return err
	}
	return s.verify(ctx)
}

func step(format string, args ...any) {
	fmt.Printf("smoke: "+format+"\n", args...)
}

// ports of the example and what they are here.
func (s *smoke) configure(ctx context.Context) error {
	replace := []string{
		"callTimeout: 30s", "callTimeout: 2s", "resendAfter: 5m", "resendAfter: 3s", "poll: 1s", "poll: 100ms",
	}
	ports := make(map[string]string)
	for _, address := range []string{"127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:9090", "127.0.0.1:8180", "127.0.0.1:8181"} {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer func() { _ = l.Close() }() // not before all are chosen: a free port may be given out twice
		ports[address] = l.Addr().String()
		replace = append(replace, address, ports[address])
	}
	s.api = "http://" + ports["127.0.0.1:8080"]
	s.management = d1sim.NewClient("http://"+ports["127.0.0.1:8181"], nil)
	example := filepath.Join(s.dir, "deploy", "example")
	if err := os.MkdirAll(example, 0o700); err != nil {
		return err
	}
	for _, name := range []string{"server.yaml", "programs.yaml", "d1sim.yaml"} {
		text, err := os.ReadFile(filepath.Join("deploy", "example", name))
		if err != nil {
			return fmt.Errorf("reading the example configuration: %w", err)
		}
		changed := strings.NewReplacer(replace...).Replace(string(text))
		if err := os.WriteFile(filepath.Join(example, name), []byte(changed), 0o600); err != nil {
			return err
		}
	}
	s.env = append(s.env, "SMOKE_D1="+ports["127.0.0.1:8180"], "SMOKE_MANAGEMENT="+ports["127.0.0.1:8181"])
	keygen := exec.CommandContext(ctx, filepath.Join(s.dir, "server"), "keygen", "--dir", filepath.Join(example, "keys"))
	if out, err := keygen.CombinedOutput(); err != nil {
		return fmt.Errorf("making keys: %w: %s", err, out)
	}
	return nil
}

const simKey = "deploy/example/keys/d1sim-encryption-key.json"

func (s *smoke) simArgs() []string {
	return []string{
		"--config", "deploy/example/d1sim.yaml", "--encryption-key-file", simKey,
		"--listen", s.lookup("SMOKE_D1"), "--management-listen", s.lookup("SMOKE_MANAGEMENT"),
	}
}

func (s *smoke) lookup(name string) string {
	for _, entry := range s.env {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value
		}
	}
	return ""
}

// start runs one of the binaries in the run's folder, its output in a log there.
func (s *smoke) start(name string, args ...string) (*exec.Cmd, error) {
	log, err := os.OpenFile(filepath.Join(s.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(filepath.Join(s.dir, name), args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.dir, s.env, log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	return cmd, nil
}

func stopProcess(cmd *exec.Cmd) {
	if cmd == nil || cmd.Process == nil {
		return
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait()
}

// readKeys waits for the simulator, makes it unforgiving, and reads what a
// client of the API needs.
func (s *smoke) readKeys(ctx context.Context) error {
	short, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := poll(short, func() (bool, error) {
		err := s.management.UpdateSettings(ctx, func(set *d1sim.Settings) {
			set.Repeat = d1sim.RepeatSecondCard // a careless resend shows
			set.StepInterval = d1sim.Duration(50 * time.Millisecond)
			set.AnswerDelay = d1sim.Duration(40 * time.Millisecond) // a kill finds calls under way
		})
		return err == nil, nil
	})
	if err != nil {
		return fmt.Errorf("waiting for the simulator: %w", err)
	}
	keys := filepath.Join(s.dir, "deploy", "example", "keys")
	token, err := os.ReadFile(filepath.Join(keys, local.FileToken))
	if err != nil {
		return err
	}
	s.token = string(token)
	jwk, err := os.ReadFile(filepath.Join(s.dir, simKey+".pub.json"))
	if err != nil {
		return err
	}
	key, err := d1client.ParsePublicJWK(jwk)
	if err != nil {
		return err
	}
	s.encrypter, err = d1client.NewEncrypter(key)
	return err
}

func (s *smoke) startServer(ctx context.Context) error {
	var err error
	if s.server, err = s.start("server", "serve", "--migrate", "--config", "deploy/example/server.yaml"); err != nil {
		return err
	}
	short, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = poll(short, func() (bool, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.api+"/readyz", nil)
		if err != nil {
			return false, err
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			return false, nil //nolint:nilerr // not listening yet
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusOK, nil
	})
	if err != nil {
		return fmt.Errorf("waiting for the service: %w", err)
	}
	return nil
}

// poll asks again and again until f is true.
func poll(ctx context.Context, f func() (bool, error)) error {
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		done, err := f()
		if done || err != nil {
			return err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// placeAndKill places the orders, four at a time, and kills the service while
// they are on their way. A caller whose request fails sends it again, as core
// banking would.
func (s *smoke) placeAndKill(ctx context.Context) error {
	step("placing %d orders, killing the service %d times in the middle of them", orderCount, killCount)
	work := make(chan int)
	errs := make(chan error, 4)
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for i := range work {
				if err := s.place(ctx, i); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	go func() {
		defer close(work)
		for i := range orderCount {
			select {
			case work <- i:
			case <-ctx.Done():
				return
			}
		}
	}()
	for kill := 1; kill <= killCount; kill++ {
		if err := s.management.Wait(ctx, d1sim.Condition{Cards: kill * orderCount / (killCount + 1)}, time.Minute); err != nil {
			return fmt.Errorf("waiting for cards: %w", err)
		}
		if err := s.server.Process.Kill(); err != nil {
			return err
		}
		_ = s.server.Wait()
		counts, err := s.management.CardCounts(ctx)
		if err != nil {
			return err
		}
		step("killed it with SIGKILL after %d cards; starting it again", len(counts))
		if err := s.startServer(ctx); err != nil {
			return err
		}
	}
	callers.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

func (s *smoke) place(ctx context.Context, i int) error {
	jwe, err := s.encrypter.Encrypt(time.Now(), []byte(`{"pan":"4111111111111111","exp":"3012","name":"ADA EXAMPLE"}`))
	if err != nil {
		return err
	}
	body, err := json.Marshal(map[string]any{
		"cardId": fmt.Sprintf("smoke-%d", i), "issuerRequestId": requestID(i), "consumerId": fmt.Sprint("smoke-", i), "cardProductId": "gold-debit",
		"distributionChannel": "THALES", "services": map[string]any{"issuance": "CREATION", "delivery": "POST"},
		"paymentApplication": map[string]any{"config": "visa-debit", "odaKeyIndex": "01", "derivationKeyIndex": "01"},
		"shipment": map[string]any{"deliveryAddress": map[string]any{
			"line1": "1 Rue de la Paix", "zipCode": "75002", "city": "Paris", "countryCode": "FR",
		}},
		"encryptedData": jwe,
	})
	if err != nil {
		return err
	}
	return poll(ctx, func() (bool, error) {
		status, answer, err := s.call(ctx, http.MethodPost, "/orders", body)
		switch {
		case err != nil || status >= 500:
			return false, nil //nolint:nilerr // the service is being killed: send it again
		case status == http.StatusCreated || status == http.StatusOK:
			return true, nil
		}
		return false, fmt.Errorf("placing order %d: %d %s", i, status, answer)
	})
}

func requestID(i int) string { return fmt.Sprintf("smoke-request-%d", i) }

func (s *smoke) call(ctx context.Context, method, path string, body []byte) (int, []byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, s.api+"/v1/issuers/"+issuer+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Authorization", "Bearer "+s.token)
	r.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = res.Body.Close() }()
	answer, err := io.ReadAll(res.Body)
	return res.StatusCode, answer, err
}

// verify waits until every order has arrived and counts the cards.
func (s *smoke) verify(ctx context.Context) error {
	step("waiting for all of them to be shipped")
	var list struct {
		Data []struct {
			IssuerRequestID string            `json:"issuerRequestId"`
			Status          string            `json:"status"`
			Attention       []json.RawMessage `json:"attention"`
		} `json:"data"`
	}
	deadline, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	err := poll(deadline, func() (bool, error) {
		status, answer, err := s.call(deadline, http.MethodGet, "/orders?limit=200", nil)
		if err != nil || status != http.StatusOK {
			return false, fmt.Errorf("listing orders: %d %w", status, err)
		}
		list.Data = nil
		if err := json.Unmarshal(answer, &list); err != nil {
			return false, err
		}
		for _, o := range list.Data {
			if o.Status != "SHIPPED" {
				return false, nil
			}
		}
		return len(list.Data) == orderCount, nil
	})
	for _, o := range list.Data {
		if o.Status != "SHIPPED" || len(o.Attention) > 0 {
			err = errors.Join(err, fmt.Errorf("%s is %s, attention %s", o.IssuerRequestID, o.Status, o.Attention))
		}
	}
	if err != nil {
		return fmt.Errorf("of %d orders, %d are here: %w", orderCount, len(list.Data), err)
	}
	counts, err := s.management.CardCounts(ctx)
	if err != nil {
		return err
	}
	for i := range orderCount {
		if n := counts[requestID(i)]; n != 1 {
			err = errors.Join(err, fmt.Errorf("%d cards were made for %s", n, requestID(i)))
		}
	}
	if len(counts) != orderCount {
		err = errors.Join(err, fmt.Errorf("cards were made for %d requests, want %d", len(counts), orderCount))
	}
	if err != nil {
		return err
	}
	history, err := s.management.History(ctx, d1sim.Filter{Kind: d1sim.KindStatus})
	if err != nil {
		return err
	}
	step("%d orders shipped, one card each; D1 was asked %d times about orders with a lost answer", orderCount, len(history))
	return nil
}
