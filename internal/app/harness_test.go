package app_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"cardorder/internal/config"
	"cardorder/internal/d1client"
	"cardorder/internal/d1sim"
	"cardorder/internal/local"
	"cardorder/internal/pgtest"
	"cardorder/internal/store"
)

func TestMain(m *testing.M) {
	// Most of the time these tests wait, for back-offs and leases, so more of them than
	// there are processors may be under way. A -parallel of the command line wins.
	if err := flag.Set("test.parallel", strconv.Itoa(3*runtime.GOMAXPROCS(0))); err != nil {
		panic(err)
	}
	os.Exit(pgtest.Main(m, store.Migrate))
}

// bank is a core banking system in front of a whole environment: the service
// in-process, the simulator over HTTP, a database of its own.
type bank struct {
	t         *testing.T
	env       *local.Environment
	encrypter *d1client.Encrypter
	logs      *logs
}

// logs keeps the service's log for tests that look into it.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// reset forgets what was logged so far.
func (l *logs) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Reset()
}

// logged tells whether the service has logged a text.
func (b *bank) logged(text string) bool { return strings.Contains(b.logs.String(), text) }

// patience is how long a test waits for what must happen.
const patience = 45 * time.Second

// fast are the settings of the simulator in tests.
var fast = d1sim.Settings{StepInterval: d1sim.Duration(5 * time.Millisecond), RetryBackoff: d1sim.Duration(10 * time.Millisecond)}

// untold are those of one that sends no notifications.
var untold = func() d1sim.Settings {
	sim := fast
	sim.HoldNotifications = true
	return sim
}()

// quick makes everything that takes minutes in production take moments.
func quick(cfg *config.Config) {
	cfg.Issuers[0].Sending = config.Sending{
		Concurrency: 8, CallTimeout: 5 * time.Second, Poll: 20 * time.Millisecond,
		ResendAfter: 600 * time.Millisecond, AfterUnknown: "resend", Retry404For: 300 * time.Millisecond,
	}
}

func newBank(t *testing.T, sim d1sim.Settings, adjust ...func(*config.Config)) *bank {
	t.Helper()
	return newBankOn(t, pgtest.New(t), sim, adjust...)
}

// newBankOn is newBank with a given database.
func newBankOn(t *testing.T, databaseURL string, sim d1sim.Settings, adjust ...func(*config.Config)) *bank {
	t.Helper()
	return newBankIn(t, local.Config{DatabaseURL: databaseURL, Simulator: sim}, adjust...)
}

// newBankIn is newBank with a given environment.
func newBankIn(t *testing.T, in local.Config, adjust ...func(*config.Config)) *bank {
	t.Helper()
	logs := &logs{}
	in.Log = slog.New(slog.NewTextHandler(logs, nil))
	in.Adjust = func(cfg *config.Config) {
		quick(cfg)
		for _, f := range adjust {
			f(cfg)
		}
	}
	env, err := local.Start(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := env.Stop(ctx); err != nil {
			t.Errorf("stopping: %v", err)
		}
		if t.Failed() {
			t.Logf("the service's log:\n%s", withoutReads(logs.String()))
		}
		if strings.Contains(logs.String(), testPAN) {
			t.Error("the service's log holds a card number")
		}
	})
	key, err := d1client.ParsePublicJWK(env.Ready.D1EncryptionKey)
	if err != nil {
		t.Fatal(err)
	}
	encrypter, err := d1client.NewEncrypter(key)
	if err != nil {
		t.Fatal(err)
	}
	return &bank{t: t, env: env, encrypter: encrypter, logs: logs}
}

// withoutReads drops the lines of requests that tests make while they wait.
func withoutReads(log string) string {
	var kept []string
	for line := range strings.Lines(log) {
		if !strings.Contains(line, "method=GET") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// testPAN is Visa's published test number.
const testPAN = "4111111111111111"

func (b *bank) jwe() string {
	b.t.Helper()
	jwe, err := b.encrypter.Encrypt(time.Now(), []byte(`{"pan":"`+testPAN+`","exp":"3012","name":"A CARDHOLDER"}`))
	if err != nil {
		b.t.Fatal(err)
	}
	return jwe
}

// body is an order as JSON.
type body map[string]any

// with returns the order with other members.
func (o body) with(changes body) body {
	changed := maps.Clone(o)
	for name, value := range changes {
		if value == nil {
			delete(changed, name)
		} else {
			changed[name] = value
		}
	}
	return changed
}

// thales is an individual order; name makes its ids.
func (b *bank) thales(name string) body {
	return body{
		"cardId": "card-" + name, "issuerRequestId": "request-" + name,
		"consumerId": "consumer-" + name, "cardProductId": "gold", "distributionChannel": "THALES",
		"services":           body{"issuance": "CREATION", "delivery": "POST"},
		"paymentApplication": body{"config": "visa", "odaKeyIndex": "1", "derivationKeyIndex": "1"},
		"shipment": body{"type": "INDIVIDUAL", "deliveryAddress": body{
			"firstName": "Ada", "lastName": "Example", "line1": "1 Rue de la Paix", "zipCode": "75002", "city": "Paris", "countryCode": "FR",
		}},
		"encryptedData": b.jwe(),
	}
}

// answer is what the API said.
type answer struct {
	status int
	header http.Header
	text   string
	view   struct {
		ID, IssuerRequestID, OperationID, CardID, Type, ConflictingOrder string
		Status                                                           word
		Version                                                          int
		Attention                                                        []struct{ Code string }
		Warnings                                                         []string
		Shipments                                                        []struct{ TrackingNumber, Carrier, TrackingURL string }
		Errors                                                           []struct{ Pointer, Parameter, Header, Code, Detail string }
		Data                                                             []json.RawMessage
		NextCursor                                                       *string
	}
}

func (b *bank) do(method, path string, header http.Header, content []byte) answer {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, b.env.Ready.APIURL+path, bytes.NewReader(content))
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+b.env.Ready.Token)
	if content != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	for name, values := range header {
		r.Header[name] = values
	}
	res, err := (&http.Client{Transport: contract{b.t}}).Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	a := answer{status: res.StatusCode, header: res.Header, text: string(text)}
	if err := json.Unmarshal(text, &a.view); err != nil {
		b.t.Fatalf("%s %s answered %d with what is not JSON: %.200q", method, path, a.status, text)
	}
	return a
}

// word is a JSON scalar as text: an order's status is a string, a problem's a number.
type word string

func (w *word) UnmarshalJSON(b []byte) error {
	*w = word(strings.Trim(string(b), `"`))
	return nil
}

const orders = "/v1/issuers/" + local.IssuerID + "/orders"

func (b *bank) post(o body, header http.Header) answer {
	b.t.Helper()
	content, err := json.Marshal(o)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.do(http.MethodPost, orders, header, content)
}

// place places an order that must be accepted, and returns its id.
func (b *bank) place(o body) string {
	b.t.Helper()
	a := b.post(o, nil)
	if a.status != http.StatusCreated {
		b.t.Fatalf("placing an order: %d %s", a.status, a.text)
	}
	return a.view.ID
}

func (b *bank) get(id string) answer {
	b.t.Helper()
	return b.do(http.MethodGet, orders+"/"+id, nil, nil)
}

// eventually waits until f is true.
func (b *bank) eventually(what string, f func() bool) {
	b.t.Helper()
	b.within(patience, what, f)
}

// within is eventually for what takes longer.
func (b *bank) within(d time.Duration, what string, f func() bool) {
	b.t.Helper()
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	for wait := 5 * time.Millisecond; !f(); wait = min(2*wait, 40*time.Millisecond) {
		select {
		case <-time.After(wait):
		case <-deadline.C:
			b.t.Fatalf("did not happen: %s", what)
		}
	}
}

// await waits until an order has a status, and returns it.
func (b *bank) await(id string, status word) answer {
	b.t.Helper()
	var a answer
	b.eventually("order "+id+" is "+string(status), func() bool {
		a = b.get(id)
		return a.view.Status == status
	})
	return a
}

// cards returns how many cards the simulator made for a request id.
func (b *bank) cards(issuerRequestID string) int {
	b.t.Helper()
	counts, err := b.env.Management.CardCounts(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	return counts[issuerRequestID]
}

func (b *bank) script(s d1sim.Script) {
	b.t.Helper()
	if err := b.env.Management.Script(b.t.Context(), s); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bank) settings(change func(*d1sim.Settings)) {
	b.t.Helper()
	if err := b.env.Management.UpdateSettings(b.t.Context(), change); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bank) wait(c d1sim.Condition) {
	b.t.Helper()
	if err := b.env.Management.Wait(b.t.Context(), c, patience); err != nil {
		b.t.Fatalf("waiting for the simulator: %v", err)
	}
}

// query reads one value from the database.
func query[T any](b *bank, sql string, args ...any) T {
	b.t.Helper()
	conn, err := pgx.Connect(b.t.Context(), b.env.Ready.DatabaseURL)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	var value T
	if err := conn.QueryRow(b.t.Context(), sql, args...).Scan(&value); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
	return value
}

// noGaps checks that an order's events are numbered from 1 without a gap, up to
// its version, and that each begins where the one before it ended.
func (b *bank) noGaps(id string) {
	b.t.Helper()
	// Read between two looks at the order that agree: a notification may come in.
	var o, a answer
	b.eventually("order "+id+" stands still", func() bool {
		o = b.get(id)
		a = b.do(http.MethodGet, orders+"/"+id+"/timeline", nil, nil)
		return b.get(id).view.Version == o.view.Version
	})
	seq, status := 0, ""
	for _, raw := range a.view.Data {
		var entry struct {
			Event *struct {
				Seq                    int
				Status, PreviousStatus string
			}
		}
		if err := json.Unmarshal(raw, &entry); err != nil {
			b.t.Fatal(err)
		}
		if entry.Event == nil {
			continue
		}
		seq++
		if entry.Event.Seq != seq || entry.Event.PreviousStatus != status {
			b.t.Errorf("order %s: event %d says seq %d from %q, want from %q", id, seq, entry.Event.Seq, entry.Event.PreviousStatus, status)
		}
		status = entry.Event.Status
	}
	if o.view.Version != seq || string(o.view.Status) != status {
		b.t.Errorf("order %s is version %d, %s; its events end at %d, %s", id, o.view.Version, o.view.Status, seq, status)
	}
}

// metrics scrapes the service.
func (b *bank) metrics() string {
	b.t.Helper()
	return b.send(http.MethodGet, b.env.Ready.MetricsURL, nil, "").text
}

// send sends any request to any listener: none of what the API's document says is looked at.
func (b *bank) send(method, url string, header http.Header, content string) answer {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), method, url, strings.NewReader(content))
	if err != nil {
		b.t.Fatal(err)
	}
	for name, values := range header {
		r.Header[name] = values
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return answer{status: res.StatusCode, header: res.Header, text: string(text)}
}

// bearer is the header of a request with a token.
func bearer(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }
