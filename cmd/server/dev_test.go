package main_test

import (
	"encoding/json"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"cardorder/internal/d1client"
)

// readyFile is what a program reads: every member, by its name in JSON.
type readyFile struct {
	APIURL           string          `json:"apiUrl"`
	IssuerID         string          `json:"issuerId"`
	Token            string          `json:"token"`
	NotificationsURL string          `json:"notificationsUrl"`
	D1URL            string          `json:"d1Url"`
	D1ManagementURL  string          `json:"d1ManagementUrl"`
	D1EncryptionKey  json.RawMessage `json:"d1EncryptionKey"`
	DatabaseURL      string          `json:"databaseUrl"`
	MetricsURL       string          `json:"metricsUrl"`
}

func startDev(t *testing.T, dir string) (*process, readyFile) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ready.json")
	if err := os.WriteFile(path, []byte("an earlier run's"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, []string{"dev", "--dir", dir, "--listen", "127.0.0.1:0", "--ready-file", path, "--step", "20ms"},
		with("TMPDIR="+sharedDir(t))) // what SIGKILL leaves there goes with the test
	var ready readyFile
	eventually(t, "dev is ready", func() bool {
		select {
		case <-p.ended:
			t.Fatalf("dev ended: %s", p.stderr.String())
		default:
		}
		text, err := os.ReadFile(path)
		if err != nil || string(text) == "an earlier run's" {
			return false
		}
		d := json.NewDecoder(strings.NewReader(string(text)))
		d.DisallowUnknownFields()
		if err := d.Decode(&ready); err != nil {
			t.Fatalf("the ready file is not whole: %v: %s", err, text)
		}
		return true
	})
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the ready file holds a token and has the mode %v, %v", info.Mode(), err)
	}
	if left := entries(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("beside the ready file: %q", left)
	}
	t.Cleanup(func() {
		if _, err := os.Stat(path); err == nil && p.cmd.ProcessState.ExitCode() == 0 {
			t.Error("the ready file outlived what it describes")
		}
	})
	p.look()
	p.wantFamily()
	return p, ready
}

func TestDev(t *testing.T) {
	t.Parallel()
	dir := sharedDir(t)
	p, ready := startDev(t, dir)
	everyURLAnswers(t, ready)
	order := placePrinted(t, p, ready)
	orderURL := func(r readyFile) string { return r.APIURL + "/v1/issuers/" + r.IssuerID + "/orders/" + order }
	eventually(t, "the order is delivered", func() bool {
		status, answer := ask(t, "GET", orderURL(ready), ready.Token, "")
		return status == 200 && strings.Contains(answer, `"status":"DELIVERED"`)
	})
	demoAgainst(t, ready)
	portTaken(t, ready)
	if log := p.stderr.String(); strings.Contains(log, "4111111111111111") || strings.Contains(log, ready.Token) {
		t.Error("the log holds the card number or the token")
	}
	p.signal(os.Interrupt)
	p.wantExit(0)
	p.wantNobody(dir)

	still := func(r readyFile) {
		t.Helper()
		if r.Token != ready.Token || string(r.D1EncryptionKey) != string(ready.D1EncryptionKey) {
			t.Error("the credentials are others")
		}
		status, answer := ask(t, "GET", orderURL(r), r.Token, "")
		if status != 200 || !strings.Contains(answer, `"status":"DELIVERED"`) {
			t.Errorf("the order is gone: %d %s", status, answer)
		}
	}
	p, again := startDev(t, dir)
	still(again)
	p.signal(syscall.SIGKILL)
	p.wait()
	p.wantNobody(dir)

	p, again = startDev(t, dir)
	still(again)
	p.signal(syscall.SIGTERM)
	p.wantExit(0)
	p.wantNobody(dir)
}

func everyURLAnswers(t *testing.T, ready readyFile) {
	t.Helper()
	if ready.IssuerID == "" || ready.Token == "" {
		t.Errorf("no issuer or no token: %+v", ready)
	}
	for _, c := range []struct {
		url, token string
		status     int
	}{
		{ready.APIURL + "/readyz", "", 200},
		{ready.APIURL + "/v1/issuers/" + ready.IssuerID + "/orders", ready.Token, 200},
		{ready.APIURL + "/v1/issuers/" + ready.IssuerID + "/orders", "wrong", 401},
		{ready.D1URL + "/authz/v1/oauth2/token", "", 405},
		{ready.D1ManagementURL + "/cards", "", 200},
		{ready.MetricsURL, "", 200},
	} {
		status, answer := ask(t, "GET", c.url, c.token, "")
		if status != c.status {
			t.Errorf("%s answers %d, want %d", c.url, status, c.status)
		}
		if c.url == ready.MetricsURL {
			wantParts(t, answer, "cardorder_open_orders{")
		}
	}
	if !strings.HasPrefix(ready.NotificationsURL, "https://") {
		t.Errorf("the simulator calls %s, not by TLS as D1 does", ready.NotificationsURL)
	}
	conn, err := pgx.Connect(t.Context(), ready.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var fsync string
	if err := conn.QueryRow(t.Context(), "SHOW fsync").Scan(&fsync); err != nil || fsync != "on" {
		t.Errorf("data that stays has fsync %q, %v", fsync, err)
	}
	key, err := d1client.ParsePublicJWK(ready.D1EncryptionKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d1client.NewEncrypter(key); err != nil {
		t.Error(err)
	}
}

var (
	printedURL    = regexp.MustCompile(`curl -sS (\S+)`)
	printedHeader = regexp.MustCompile(`-H "([^:]+): ([^"]+)"`)
	printedBody   = regexp.MustCompile(`(?s)-d '(.*\})'\n`)
)

// placePrinted does what the printed curl does.
func placePrinted(t *testing.T, p *process, ready readyFile) string {
	t.Helper()
	eventually(t, "the greeting", func() bool { return strings.Contains(p.stdout.String(), "Ctrl-C") })
	text := strings.ReplaceAll(strings.ReplaceAll(p.stdout.String(), "'$(date +%s)'", "1"), "$(date +%s)", "1")
	wantParts(t, text, "SIMULATOR", "TOKEN="+ready.Token, ready.NotificationsURL, ready.MetricsURL, ready.D1URL, ready.D1ManagementURL, ready.DatabaseURL)
	to, body := printedURL.FindStringSubmatch(text), printedBody.FindStringSubmatch(text)
	if to == nil || body == nil {
		t.Fatalf("no curl in %s", text)
	}
	var header []string
	for _, m := range printedHeader.FindAllStringSubmatch(text, -1) {
		header = append(header, m[1], m[2])
	}
	status, answer := ask(t, "POST", to[1], "", body[1], header...)
	var order struct{ ID string }
	if err := json.Unmarshal([]byte(answer), &order); err != nil || status != 201 || order.ID == "" {
		t.Fatalf("the printed order: %d %s", status, answer)
	}
	return order.ID
}

// demoAgainst shows the orders on a service that runs already.
func demoAgainst(t *testing.T, ready readyFile) {
	t.Helper()
	dir := t.TempDir()
	token, key := filepath.Join(dir, "token"), filepath.Join(dir, "key")
	for path, text := range map[string]string{token: ready.Token + "\n", key: string(ready.D1EncryptionKey)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := run(t, []string{"demo", "--api-url", ready.APIURL, "--token-file", token, "--encryption-key-file", key})
	p.wantExit(0)
	wantArrived(t, p, "(SHIPPED|DELIVERED)")
}

func wantArrived(t *testing.T, p *process, shipped string) {
	t.Helper()
	for _, want := range []string{`THALES individual +` + shipped + ` +yes`, `THALES bulk +` + shipped + ` +yes`, `INSTANT +PRODUCED +yes`} {
		if !regexp.MustCompile("(?m)^" + want).MatchString(p.stdout.String()) {
			t.Errorf("no %q in %s", want, p.stdout.String())
		}
	}
}

// portTaken starts another dev on the port of one that runs.
func portTaken(t *testing.T, ready readyFile) {
	t.Helper()
	u, err := url.Parse(ready.APIURL)
	if err != nil {
		t.Fatal(err)
	}
	dir := sharedDir(t)
	path := filepath.Join(dir, "ready.json")
	p := run(t, []string{"dev", "--dir", filepath.Join(dir, "dev"), "--listen", u.Host, "--ready-file", path})
	p.wantExit(1)
	wantParts(t, p.stderr.String(), "listening for api", u.Host, "address already in use")
	p.wantFamily()
	p.wantNobody(dir)
	if _, err := os.Stat(path); err == nil || p.stdout.String() != "" {
		t.Errorf("it said that it is up: %s", p.stdout.String())
	}
}

// takePorts takes the ports that the service has by default. Others may have
// them already, which is as good.
func takePorts(t *testing.T) {
	t.Helper()
	for _, port := range []string{"8080", "8081", "9090", "8180", "8181"} {
		l, err := net.Listen("tcp", ":"+port)
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
	}
}

func TestDemo(t *testing.T) {
	t.Parallel()
	takePorts(t)
	for range 2 {
		temp := sharedDir(t)
		p := run(t, []string{"demo"}, with("TMPDIR="+temp))
		p.wantExit(0)
		wantArrived(t, p, "DELIVERED")
		wantParts(t, p.stdout.String(), "SIMULATOR")
		if p.stderr.String() != "" {
			t.Errorf("it complained: %s", p.stderr.String())
		}
		p.wantFamily()
		p.wantNobody("")
		if left := entries(temp); len(left) > 0 {
			t.Errorf("it left %q", left)
		}
	}
}

func TestDemoAsOrdinaryUser(t *testing.T) {
	t.Parallel()
	home := sharedDir(t)
	as := func(c *exec.Cmd) {
		c.Dir = home
		c.Env = append(c.Env, "HOME="+home, "TMPDIR="+home)
	}
	if os.Geteuid() == 0 { // otherwise the test's own user is an ordinary one
		const nobody = 65534
		if err := os.Chown(home, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		self := as
		as = func(c *exec.Cmd) {
			self(c)
			c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		}
	}
	p := run(t, []string{"demo"}, as)
	p.wantExit(0)
	wantArrived(t, p, "DELIVERED")
	p.wantFamily()
	p.wantNobody(home)
	if left := entries(home); len(left) > 0 {
		t.Errorf("it left %q", left)
	}
}

func TestDemoThatDoesNotArrive(t *testing.T) {
	t.Parallel()
	p := run(t, []string{"demo", "--timeout", "1ms"})
	p.wantExit(1)
	wantParts(t, p.stderr.String(), "not every order arrived")
	p.wantFamily()
	p.wantNobody("")
}

// Ctrl-C in the middle of the demonstration leaves nothing either.
func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	temp := sharedDir(t)
	p := start(t, []string{"demo"}, with("TMPDIR="+temp))
	eventually(t, "the first order is placed", func() bool {
		p.look()
		return strings.Contains(p.stdout.String(), "answered 201")
	})
	p.signal(os.Interrupt)
	p.wantExit(1)
	p.wantNobody("")
	if left := entries(temp); len(left) > 0 {
		t.Errorf("it left %q", left)
	}
}
