package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cardorder/internal/d1sim"
)

const goodConfig = `
issuers:
  - id: bank000001
    signingKeys: [{kid: key-1, publicKeyFile: signing.pem}]
    pathStyle: lowercase
    notificationsUrl: http://127.0.0.1:1/notifications/d1/v2/issuers/bank000001/cards
    tokenUrl: http://127.0.0.1:1/authz/d1/v1/oauth2/token
    clientId: d1
    clientSecret: secret
aggregators:
  - id: aggregator
    signingKeys: [{kid: key-1, publicKeyFile: signing.pem}]
    issuers: [bank000001]
settings:
  stepInterval: 20ms
  unknownCard: 404
  failAt: {status: DATA_EXCEPTION, reason: out of stock}
  faults: {seed: 7, lostAfter: 0.2, lateBy: 50ms}
`

// writeConfig writes a configuration and the signing key it names.
func writeConfig(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"signing.pem": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}),
		"d1sim.yaml":  []byte(text),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "d1sim.yaml")
}

func TestRunServesAndStops(t *testing.T) {
	t.Parallel()
	config := writeConfig(t, goodConfig)
	keyFile := filepath.Join(filepath.Dir(config), "key.json")

	var kids []string
	for range 2 { // the key survives the restart
		ctx, cancel := context.WithCancel(t.Context())
		up, ended := make(chan [2]string, 1), make(chan error, 1)
		go func() {
			ended <- run(ctx, []string{"--config", config, "--listen", "127.0.0.1:0", "--management-listen", "127.0.0.1:0",
				"--encryption-key-file", keyFile}, io.Discard,
				func(d1, management net.Addr) { up <- [2]string{d1.String(), management.String()} })
		}()
		var addresses [2]string
		select {
		case addresses = <-up:
		case err := <-ended:
			t.Fatal(err)
		}

		resp, err := http.Get("http://" + addresses[0] + "/banking/v1/issuers/bank000001/physicalcards/card-1/productionStatus")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("X-Simulator") == "" {
			t.Errorf("D1 side: got %d %v", resp.StatusCode, resp.Header)
		}
		client := d1sim.NewClient("http://"+addresses[1], nil)
		set, err := client.Settings(ctx)
		if err != nil || set.StepInterval != d1sim.Duration(20*time.Millisecond) || set.UnknownCard != "404" || set.FailAt.Reason != "out of stock" ||
			set.Faults == nil || *set.Faults != (d1sim.Faults{Seed: 7, LostAfter: 0.2, SlowBy: d1sim.Duration(time.Second), LateBy: d1sim.Duration(50 * time.Millisecond)}) {
			t.Errorf("settings %+v, %v", set, err)
		}
		key, err := client.EncryptionKey(ctx)
		if err != nil {
			t.Fatal(err)
		}
		kids = append(kids, key.KeyID)

		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if kids[0] != kids[1] {
		t.Errorf("key changed: %v", kids)
	}
	if info, err := os.Stat(keyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v %v", info, err)
	}
	public, err := os.ReadFile(keyFile + ".pub.json")
	if err != nil || !strings.Contains(string(public), kids[0]) || strings.Contains(string(public), `"d"`) {
		t.Errorf("public key file: %s %v", public, err)
	}
}

func TestRunRefuses(t *testing.T) {
	t.Parallel()
	good := writeConfig(t, goodConfig)
	notAKey := filepath.Join(t.TempDir(), "key.json")
	if err := os.WriteFile(notAKey, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no config":         {nil, "--config is required"},
		"unknown flag":      {[]string{"--port", "1"}, "port"},
		"argument":          {[]string{"serve"}, "serve"},
		"every address":     {[]string{"--config", good, "--listen", ":0"}, "--allow-remote"},
		"remote address":    {[]string{"--config", good, "--listen", "192.0.2.1:0"}, "--allow-remote"},
		"remote management": {[]string{"--config", good, "--listen", "127.0.0.1:0", "--management-listen", "0.0.0.0:0"}, "--allow-remote"},
		"no key":            {[]string{"--config", good, "--encryption-key-file", notAKey}, "key.json"},
		"unknown member":    {[]string{"--config", writeConfig(t, goodConfig+"  stepIntervall: 1s\n")}, "stepIntervall"},
		"bad setting":       {[]string{"--config", writeConfig(t, goodConfig+"  repeat: twice\n")}, "repeat"},
		"missing key file":  {[]string{"--config", writeConfig(t, strings.ReplaceAll(goodConfig, "signing.pem", "x.pem"))}, "x.pem"},
		"empty secret": {[]string{"--config", writeConfig(t, strings.Replace(goodConfig, "clientSecret: secret",
			"clientSecretEnv: D1SIM_TEST_UNSET", 1))}, "D1SIM_TEST_UNSET"},
	} {
		err := run(t.Context(), c.args, io.Discard, func(_, _ net.Addr) { t.Errorf("%s: is up", name) })
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want something of %q", name, err, c.want)
		}
	}
}

func TestAllowRemote(t *testing.T) {
	t.Parallel()
	listener, err := openListener(t.Context(), "0.0.0.0:0", true)
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
}
