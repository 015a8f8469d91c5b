package main_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"cardorder/internal/local"
	"cardorder/internal/pgrun"
)

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"", 2, "Usage: server <command>"},
		{"order", 2, "Usage: server <command>"},
		{"--config x", 2, "Usage: server <command>"},
		{"serve", 2, "--config is required\nUsage of serve:"},
		{"serve --config", 2, "flag needs an argument"},
		{"serve --config x extra", 2, "unexpected argument \"extra\"\nUsage of serve:"},
		{"serve --port 1", 2, "flag provided but not defined: -port"},
		{"config", 2, "--config is required\nUsage of config:"},
		{"restored", 2, "--config is required\nUsage of restored:"},
		{"import", 2, "--config is required\n--issuer is required\nusage: server import"},
		{"import --config x --issuer ISSUER0001", 2, "--issuer"},
		{"import --config x --issuer ISSUER0001 orders.txt", 2, "a file that ends in .csv or .ndjson is required"},
		{"import --config /missing.yaml --issuer ISSUER0001 orders.csv", 1, "reading the configuration: open /missing.yaml"},
		{"migrate", 2, "usage: server migrate up|status"},
		{"migrate down --config x", 2, "usage: server migrate up|status"},
		{"migrate up", 2, "--config is required\nUsage of migrate up:"},
		{"keygen", 2, "--dir is required\nUsage of keygen:"},
		{"dev --step soon", 2, "invalid value"},
		{"demo now", 2, "unexpected argument"},
		{"demo --api-url http://127.0.0.1:1", 2, "--token-file is required\n--encryption-key-file is required\nUsage of demo:"},
		{"healthcheck http://127.0.0.1:1", 2, "unexpected argument"},
		{"serve --config /missing.yaml", 1, "server serve: reading the configuration: open /missing.yaml"},
		{"serve -h", 0, "Usage of serve:"},
		{"migrate up -h", 0, "Usage of migrate up:"},
		{"dev --help", 0, "Usage of dev:"},
	} {
		p := run(t, strings.Fields(c.args))
		if got := p.wait(); got != c.code {
			t.Errorf("server %s: exit code %d, want %d", c.args, got, c.code)
		}
		wantParts(t, p.stderr.String(), c.want)
		if p.stdout.String() != "" {
			t.Errorf("server %s: on standard output: %s", c.args, p.stdout.String())
		}
	}
	for _, arg := range []string{"help", "-h", "--help"} {
		p := run(t, []string{arg})
		p.wantExit(0)
		wantParts(t, p.stdout.String(), "Usage: server <command>", "serve", "dev", "demo", "migrate", "import", "restored", "healthcheck", "keygen", "config")
	}
}

// site is a folder with the example's configuration and keys of its own.
type site struct {
	dir, env string
	secrets  []string // what no output may hold
	token    string
}

const (
	yamlPath     = "deploy/example/server.yaml"
	programsPath = "deploy/example/programs.yaml"
)

func newSite(t *testing.T, databaseURL string, oldnew ...string) site {
	t.Helper()
	s := site{dir: t.TempDir(), env: "CARDORDER_DATABASE_URL=" + databaseURL}
	keys := filepath.Join(s.dir, "deploy", "example", "keys")
	for range 2 { // what exists is kept
		p := run(t, []string{"keygen", "--dir", "deploy/example/keys"}, in(s.dir))
		p.wantExit(0)
		wantParts(t, p.stdout.String(), "deploy/example/keys")
	}
	for _, name := range entries(keys) {
		text, err := os.ReadFile(filepath.Join(keys, name))
		if err != nil {
			t.Fatal(err)
		}
		if name != local.FileSigningKeyPublic {
			s.secrets = append(s.secrets, regexp.MustCompile(`[A-Za-z0-9+/=_-]{20,}`).FindAllString(string(text), -1)...)
		}
		if name == local.FileToken {
			s.token = string(text)
		}
	}
	if len(s.secrets) < 7 {
		t.Fatalf("only %d secrets", len(s.secrets))
	}
	if _, password, ok := strings.Cut(databaseURL, "cardorder:"); ok {
		password, _, _ = strings.Cut(password, "@")
		s.secrets = append(s.secrets, password)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwk, err := json.Marshal(jose.JSONWebKey{Key: &private.PublicKey, KeyID: "d1"})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../" + yamlPath)
	if err != nil {
		t.Fatal(err)
	}
	programs, err := os.ReadFile("../../" + programsPath)
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string]string{
		filepath.Join(keys, "d1sim-encryption-key.json.pub.json"): string(jwk),
		filepath.Join(s.dir, programsPath):                        string(programs),
		filepath.Join(s.dir, yamlPath): strings.NewReplacer(append(oldnew, "127.0.0.1:8080", "127.0.0.1:0", "127.0.0.1:8081", "127.0.0.1:0",
			"127.0.0.1:9090", "127.0.0.1:0", "127.0.0.1:8180", "127.0.0.1:1")...).Replace(string(text)),
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s site) start(t *testing.T, args ...string) *process {
	t.Helper()
	return start(t, append(args, "--config", yamlPath), in(s.dir), with(s.env))
}

func (s site) run(t *testing.T, args ...string) *process {
	t.Helper()
	p := s.start(t, args...)
	p.wait()
	return p
}

func (s site) wantNoSecret(t *testing.T, p *process) {
	t.Helper()
	told := p.stdout.String() + p.stderr.String()
	for _, secret := range s.secrets {
		if strings.Contains(told, secret) {
			t.Errorf("it tells a secret: %q", secret)
		}
	}
}

// listening waits for the line of the log that tells a listener's address.
func (p *process) listening(name string) (url string) {
	p.t.Helper()
	p.eventually(name+" listens", func() bool {
		for line := range strings.Lines(p.stderr.String()) {
			var entry struct{ Msg, Listener, Address string }
			if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "listening" && entry.Listener == name {
				url = "http://" + entry.Address
				return true
			}
		}
		select {
		case <-p.ended:
			p.t.Fatalf("it ended: %s", p.stderr.String())
		default:
		}
		return false
	})
	return url
}

func TestServe(t *testing.T) {
	t.Parallel()
	pg, err := pgrun.Start(t.Context(), pgrun.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Stop(); err != nil {
			t.Error(err)
		}
	})
	s := newSite(t, pg.URL(""))

	// An empty database: the command that helps is named, before and after a look.
	refused := func() {
		t.Helper()
		p := s.run(t, "serve")
		p.wantExit(1)
		wantParts(t, p.stderr.String(), "server migrate up", "--migrate")
		s.wantNoSecret(t, p)
	}
	refused()
	wantMigrations(t, s, "pending")
	refused()

	p := s.start(t, "serve", "--migrate")
	api, notifications, admin := p.listening("api"), p.listening("notifications"), p.listening("admin")
	eventually(t, "it is ready", func() bool { status, _ := ask(t, "GET", api+"/readyz", "", ""); return status == 200 })
	wantMigrations(t, s, "applied")
	up := run(t, []string{"healthcheck", "--url", api + "/readyz", "--timeout", patience.String()})
	up.wantExit(0)
	wantParts(t, up.stdout.String(), "ready")
	use(t, s, api, notifications, admin)

	p.signal(syscall.SIGTERM)
	p.wantExit(0)
	wantLog(t, p)
	s.wantNoSecret(t, p)
	if p.stdout.String() != "" {
		t.Errorf("on standard output: %s", p.stdout.String())
	}
	down := run(t, []string{"healthcheck", "--url", api + "/readyz"})
	down.wantExit(1)
	wantParts(t, down.stderr.String(), "connection refused")

	// migrate up where all is done, and a start on a schema that is current.
	again := s.run(t, "migrate", "up")
	again.wantExit(0)
	wantParts(t, again.stdout.String(), "applied")
	p = s.start(t, "serve")
	p.listening("api")
	p.signal(os.Interrupt)
	p.wantExit(0)
}

// A database that is away is waited for, also by migrations; a signal ends the waiting.
func TestServeWaitsForTheDatabase(t *testing.T) {
	t.Parallel()
	pg, err := pgrun.Start(t.Context(), pgrun.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Stop(); err != nil {
			t.Error(err)
		}
	})
	s := newSite(t, pg.URL(""))
	if err := pg.Halt(pgrun.Fast); err != nil {
		t.Fatal(err)
	}
	waits := func(args ...string) *process {
		t.Helper()
		p := s.start(t, args...)
		p.eventually("the log tells", func() bool { return strings.Contains(p.stderr.String(), "the database is away: waiting for it") })
		return p
	}
	stopped := waits("serve")
	stopped.listening("admin")
	stopped.signal(syscall.SIGTERM)
	stopped.wantExit(0)
	s.wantNoSecret(t, stopped)

	p := waits("serve", "--migrate")
	if err := pg.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	api := p.listening("api")
	eventually(t, "it is ready", func() bool { status, _ := ask(t, "GET", api+"/readyz", "", ""); return status == 200 })
	p.signal(syscall.SIGTERM)
	p.wantExit(0)
	s.wantNoSecret(t, p)
}

// After a restore an order that waits is asked about before it is sent, also when the
// database itself does not show that it was set back.
func TestRestored(t *testing.T) {
	t.Parallel()
	pg, err := pgrun.Start(t.Context(), pgrun.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Stop(); err != nil {
			t.Error(err)
		}
	})
	s := newSite(t, pg.URL(""), "sensitiveData: false", "sensitiveData: true")
	const said = "every message is marked: D1 is asked before anything is sent"
	refused := func(parts ...string) {
		t.Helper()
		p := s.run(t, "restored")
		p.wantExit(1)
		wantParts(t, p.stderr.String(), parts...)
		if p.stdout.String() != "" {
			t.Errorf("on standard output: %s", p.stdout.String())
		}
		s.wantNoSecret(t, p)
	}
	refused("server restored: ", "server migrate up") // nothing to mark in an empty one

	p := s.start(t, "serve", "--migrate")
	orders := p.listening("api") + "/v1/issuers/" + local.IssuerID + "/orders"
	status, answer := ask(t, "POST", orders, s.token, `{"cardId":"card-1","issuerRequestId":"request-1","consumerId":"consumer-1","cardProductId":"gold-debit",
		"distributionChannel":"THALES","services":{"issuance":"CREATION","delivery":"POST"},
		"paymentApplication":{"config":"visa-debit","odaKeyIndex":"01","derivationKeyIndex":"01"},
		"shipment":{"deliveryAddress":{"firstName":"Ada","lastName":"Example","line1":"1 Rue de la Paix","zipCode":"75002","city":"Paris","countryCode":"FR"}},
		"sensitiveData":{"pan":"4111111111111111","exp":"3012","name":"ADA EXAMPLE"}}`, "Content-Type", "application/json")
	if status != 201 {
		t.Fatalf("placing an order: %d %s", status, answer)
	}
	p.signal(syscall.SIGTERM)
	p.wantExit(0)

	for range 2 { // again is harmless
		p = s.run(t, "restored")
		p.wantExit(0)
		wantParts(t, p.stdout.String(), said)
		wantParts(t, p.stderr.String(), "messages=1")
		s.wantNoSecret(t, p)
	}
	if err := pg.Halt(pgrun.Fast); err != nil {
		t.Fatal(err)
	}
	refused("server restored: ", "failed to connect")
	if err := pg.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// SIGHUP reads the programs file again, and stops nothing.
func TestHangup(t *testing.T) {
	t.Parallel()
	pg, err := pgrun.Start(t.Context(), pgrun.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Stop(); err != nil {
			t.Error(err)
		}
	})
	s := newSite(t, pg.URL(""))
	p := s.start(t, "serve", "--migrate")
	api := p.listening("api")
	path := filepath.Join(s.dir, programsPath)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	ready := func() string {
		status, answer := ask(t, "GET", api+"/readyz", "", "")
		if status != 200 {
			t.Errorf("/readyz: %d", status)
		}
		return answer
	}
	before := ready()
	hangup := func(text, until string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		p.signal(syscall.SIGHUP)
		eventually(t, until, func() bool { return strings.Contains(p.stderr.String(), until) })
	}
	hangup("surprise: 1\nissuers: [{issuerId: NOBODY0001, programs: []}]\n", `"msg":"the programs file is not right; what was in effect stays"`)
	wantParts(t, p.stderr.String(), "line 1: unknown setting surprise", "issuers[0].issuerId: names an issuer that is not configured")
	if ready() != before {
		t.Error("a bad file changed something")
	}
	other := sha256.Sum256(append(good, "# another\n"...))
	hangup(string(good)+"# another\n", `"digest":"`+hex.EncodeToString(other[:])+`"`)
	wantParts(t, ready(), hex.EncodeToString(other[:]))
	p.signal(syscall.SIGTERM)
	p.wantExit(0)
}

func wantMigrations(t *testing.T, s site, state string) {
	t.Helper()
	p := s.run(t, "migrate", "status")
	p.wantExit(0)
	lines := strings.Split(strings.TrimSpace(p.stdout.String()), "\n")
	for _, line := range lines {
		if !strings.HasPrefix(line, state+" ") || !strings.HasSuffix(line, ".sql") {
			t.Errorf("migrate status: %q, want %s", line, state)
		}
	}
	if files, err := filepath.Glob("../../migrations/*.sql"); err != nil || len(files) != len(lines) {
		t.Errorf("%d migrations are shown of %d (%v)", len(lines), len(files), err)
	}
}

// use makes the service log: requests that are right and wrong, with and
// without credentials and card data.
func use(t *testing.T, s site, api, notifications, admin string) {
	t.Helper()
	orders := api + "/v1/issuers/" + local.IssuerID + "/orders"
	for _, c := range []struct {
		method, url, token, body string
		want                     int
	}{
		{"GET", orders, s.token, "", 200},
		{"GET", orders, "wrong-" + s.token, "", 401},
		{"GET", orders + "?access_token=" + s.token, "", "", 401},
		{"POST", orders, s.token, `{"sensitiveData":{"pan":"4111111111111111","exp":"3012","name":"ADA EXAMPLE"}}`, 400},
		{"POST", orders, s.token, `{"cardId":"4111111111111111"`, 400},
		{"POST", notifications + "/authz/d1/v1/oauth2/token", s.token, "grant_type=client_credentials", 0},
		{"POST", notifications + "/notifications/d1/v2/issuers/" + local.IssuerID + "/cards", s.token, "{}", 401},
		{"GET", admin + "/metrics", "", "", 200},
	} {
		status, answer := ask(t, c.method, c.url, c.token, c.body, "Content-Type", "application/json")
		if c.want != 0 && status != c.want {
			t.Errorf("%s %s: %d %s, want %d", c.method, c.url, status, answer, c.want)
		}
		if strings.Contains(answer, "4111111111111111") {
			t.Errorf("%s %s repeats the card number: %s", c.method, c.url, answer)
		}
	}
}

// wantLog demands JSON lines from the first to the last, without card numbers.
func wantLog(t *testing.T, p *process) {
	t.Helper()
	messages := make(map[string]int)
	for line := range strings.Lines(p.stderr.String()) {
		var entry struct {
			Time, Level, Msg string
			Config           map[string]any
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Time == "" || entry.Level == "" || entry.Msg == "" {
			t.Errorf("not a line of the log: %s", line)
		}
		if entry.Msg == "starting" && entry.Config["environment"] != "development" {
			t.Errorf("the configuration is not told: %s", line)
		}
		messages[entry.Msg]++
	}
	for msg, n := range map[string]int{"starting": 1, "listening": 3, "stopping": 1, "stopped": 1} {
		if messages[msg] != n {
			t.Errorf("%d lines %q, want %d", messages[msg], msg, n)
		}
	}
	if messages["request"] < 5 {
		t.Errorf("%d lines for requests", messages["request"])
	}
	if strings.Contains(p.stderr.String(), "4111111111111111") {
		t.Error("the log holds a card number")
	}
}

func TestHealthcheckNotReady(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
	t.Cleanup(srv.Close)
	p := run(t, []string{"healthcheck", "--url", srv.URL})
	p.wantExit(1)
	wantParts(t, p.stderr.String(), "not ready: 503")

	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(hangs.Close)
	p = run(t, []string{"healthcheck", "--url", hangs.URL, "--timeout", "50ms"})
	p.wantExit(1)
}

func TestServeWithFaults(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", "environment: development", "environment: production\nsurprise: 1",
		"level: info", "level: loud", "resendAfter: 5m", "resendAfter: 5", "signingKeyId: example-signing", "",
		"{file: deploy/example/keys/content-hash.key}", "{file: deploy/example/keys/nothing.key}")
	for _, args := range [][]string{{"serve"}, {"config"}, {"migrate", "up"}} {
		p := s.run(t, args...)
		p.wantExit(1)
		wantParts(t, p.stderr.String(), yamlPath, "unknown setting surprise", "must be a duration such as 30s",
			"\ndatabase.url: is required", "\nkeys.contentHash: reading a secret: open deploy/example/keys/nothing.key",
			"\nlog.level: must be", "\nissuers[0].d1.baseUrl: ", "\nissuers[0].d1.tokenUrl: ",
			"\nissuers[0].d1.signingKeyId: is required", "\nissuers[0].d1.clientCertFile: is required")
		s.wantNoSecret(t, p)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	s := newSite(t, "postgres://cardorder:hunter2-hunter2@127.0.0.1:1/cardorder")
	p := s.run(t, "config")
	p.wantExit(0)
	s.wantNoSecret(t, p)
	var effective struct {
		Environment string
		Database    map[string]any
		Issuers     []struct{ Sending map[string]any }
		Programs    struct {
			Digest  string
			Issuers map[string][]struct {
				CardProductID        string
				DestinationCountries []string
			}
		}
	}
	if err := json.Unmarshal([]byte(p.stdout.String()), &effective); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(effective); got != "{development map[directUrl:[set] maxConns:16 url:[set]] "+
		"[{map[afterUnknown:resend breakerThreshold:5 callTimeout:30s changeTimeout:72h0m0s concurrency:16 giveUpAfter:72h0m0s poll:1s ratePerSecond:0 resendAfter:5m0s retry404For:15m0s silentAfter:24h0m0s stopAfterRefusals:5]}] "+
		"{"+effective.Programs.Digest+" map[ISSUER0001:[{gold-debit [FR DE GB]}]]}}" || len(effective.Programs.Digest) != 64 {
		t.Errorf("in effect: %s", got)
	}

	// No database there: a start says so, tells no password, and waits for it.
	p = s.start(t, "serve")
	p.eventually("it says that there is no database", func() bool { return strings.Contains(p.stderr.String(), "127.0.0.1:1") })
	p.signal(syscall.SIGTERM)
	p.wait()
	s.wantNoSecret(t, p)
}
