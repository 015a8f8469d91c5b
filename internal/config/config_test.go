package config_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"cardorder/internal/config"
	"cardorder/internal/local"
)

const databaseURL = "postgres://cardorder:" + hidden + "@127.0.0.1:5432/cardorder"

// files is a folder with everything that a configuration can name.
type files struct {
	local.Keys
	dir, jwk, certificate, key, authority string
}

func newFiles(t *testing.T) files {
	t.Helper()
	f := files{dir: t.TempDir()}
	var err error
	if f.Keys, err = local.MakeKeys(filepath.Join(f.dir, "keys")); err != nil {
		t.Fatal(err)
	}
	f.jwk = filepath.Join(f.dir, "d1.jwk")
	writeJWK(t, f.jwk, "d1-1")
	f.certificate, f.key, f.authority = filepath.Join(f.dir, "c.pem"), filepath.Join(f.dir, "k.pem"), filepath.Join(f.dir, "ca.pem")
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	write(t, f.certificate, string(certificate))
	write(t, f.authority, string(certificate))
	write(t, f.key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
	return f
}

func writeJWK(t *testing.T, path, kid string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(jose.JSONWebKey{Key: &private.PublicKey, KeyID: kid})
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, string(text))
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// minimal sets what must be set, and no more.
func (f files) minimal() string {
	return fmt.Sprintf(`environment: development
database: {url: %q}
keys:
  sealing: {file: %s}
  contentHash: {file: %s}
  notificationTokens:
    - {id: one, secret: {file: %s}}
clients:
  - {name: bank, tokenSha256: {file: %s}, scopes: [orders:read], issuers: [ISSUER0001]}
issuers:
  - id: ISSUER0001
    d1:
      baseUrl: http://127.0.0.1:8180/banking/v1
      tokenUrl: http://127.0.0.1:8180/authz/v1/oauth2/token
      signingKey: {file: %s}
      signingKeyId: signing
      encryptionKeys: [{file: %s}]
    notifications: {clientId: d1, clientSecret: {file: %s}, clientCertificate: false}
`, databaseURL, f.Path(local.FileSealing), f.Path(local.FileContentHash), f.Path(local.FileNotificationKey),
		f.Path(local.FileTokenHash), f.Path(local.FileSigningKey), f.jwk, f.Path(local.FileD1ClientSecret))
}

// mutual is a notification listener that demands a client certificate.
func (f files) mutual() string {
	return fmt.Sprintf("notifications: {tls: {certFile: %s, keyFile: %s, clientCaFile: %s}}\n", f.certificate, f.key, f.authority)
}

// replaced replaces every old with its new; each old must be there.
func replaced(t *testing.T, text string, oldnew ...string) string {
	t.Helper()
	for i := 0; i < len(oldnew); i += 2 {
		if !strings.Contains(text, oldnew[i]) {
			t.Fatalf("no %q to replace", oldnew[i])
		}
		text = strings.ReplaceAll(text, oldnew[i], oldnew[i+1])
	}
	return text
}

func parse(t *testing.T, text string) *config.Config {
	t.Helper()
	cfg, err := config.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// wantFaults demands exactly these faults, by how their lines begin.
func wantFaults(t *testing.T, text string, want ...string) {
	t.Helper()
	_, err := config.Parse([]byte(text))
	wantLines(t, err, want...)
}

func wantLines(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no fault, want %q", want)
	}
	lines := strings.Split(err.Error(), "\n")
	for _, begin := range want {
		found := false
		for i, line := range lines {
			if strings.HasPrefix(line, begin) {
				found, lines = true, append(lines[:i:i], lines[i+1:]...)
				break
			}
		}
		if !found {
			t.Errorf("no fault %q in:\n%v", begin, err)
		}
	}
	if len(lines) > 0 {
		t.Errorf("more faults than wanted: %q", lines)
	}
	wantNone(t, err.Error(), hidden, "hunter2")
}

func TestMinimal(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	cfg := parse(t, f.minimal())
	in := cfg.Issuers[0]
	if cfg.Database.URL.Reveal() != databaseURL || cfg.Database.DirectURL.Reveal() != databaseURL {
		t.Error("the database URLs are wrong")
	}
	if in.D1.AssertionSubject != "ISSUER0001" || in.Sending.ResendAfter != 5*time.Minute || in.DuplicateWindow != 720*time.Hour {
		t.Errorf("defaults: %+v", in)
	}
	path := filepath.Join(f.dir, "server.yaml")
	write(t, path, f.minimal())
	if _, err := config.Load(path); err != nil {
		t.Error(err)
	}
	write(t, path, "nonsense: 1\n"+f.minimal())
	if _, err := config.Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("the file is not named: %v", err)
	}
	if _, err := config.Load(path + ".missing"); err == nil {
		t.Error("a missing file was read")
	}
}

func TestEmpty(t *testing.T) {
	t.Parallel()
	want := []string{
		"environment: must be", "database.url: is required", "keys.sealing: is required", "keys.contentHash: is required",
		"keys.notificationTokens: needs", "issuers: needs",
	}
	wantFaults(t, "", want...)
	wantFaults(t, "# nothing\n---\n", want...)
}

func TestUnknownSettings(t *testing.T) {
	t.Parallel()
	wantFaults(t, replaced(t, newFiles(t).minimal(),
		"environment: dev", "surroundings: x\nenvironment: dev",
		"signingKeyId: signing", "signingKeyId: signing\n      baseurl: x",
		"notifications: {clientId", "sending: {retryRefusedFor: 1m}\n    notifications: {clientId",
		"name: bank", "nickname: y, name: bank",
	), "line 1: unknown setting surroundings", "line 10: unknown setting nickname", "line 18: unknown setting baseurl",
		"line 20: the setting retryRefusedFor is now called retry404For")
}

func TestAllFaultsAtOnce(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "missing")
	text := strings.ReplaceAll(`environment: test
surprise: 1
database: {url: {env: CONFIG_TEST_NOT_SET}, directUrl: {file: MISSING}, maxConns: -1}
keys:
  sealing: hunter2-hunter2
  contentHash: hunter2-hunter2
  notificationTokens:
    - {secret: hunter2-hunter2}
    - {id: one, secret: {file: MISSING}}
    - {id: one, secret: {nowhere: hunter2-hunter2}}
api: {listen: nowhere}
notifications: {listen: "127.0.0.1", tls: {certFile: MISSING, keyFile: MISSING}}
admin: {listen: 9090}
log: {level: chatty}
clients:
  - {tokenSha256: hunter2-hunter2, scopes: [orders:read, orders:delete], issuers: [NOBODY0001]}
  - {name: a}
  - {name: a, tokenSha256: [hunter2-hunter2]}
issuers:
  - id: short
    bins: ["411111", "41x111"]
    duplicateWindow: -1h
    d1:
      baseUrl: ftp://d1
      tokenUrl: https://user:hunter2-hunter2@d1
      pathStyle: camel
      changePath: ../change
      signingKey: hunter2-hunter2
      clientKeyFile: MISSING
      caFile: MISSING
      encryptionKeys: [{file: MISSING}, {file: /dev/null}]
    sending: {concurrency: 5000, callTimeout: -1s, poll: -1s, resendAfter: -1s, retry404For: -1s, afterUnknown: pray,
      ratePerSecond: -1, stopAfterRefusals: 1, giveUpAfter: -1s, changeTimeout: -1s, breakerThreshold: 1001}
    notifications: {clientNames: [""]}
  - id: ISSUER/001
    d1: {signingKey: {file: MISSING}}
    notifications: {clientId: d1, clientSecret: {env: CONFIG_TEST_NOT_SET}, clientCertificate: false, clientNames: [d1]}
  - id: ISSUER/001
`, "MISSING", missing)
	d1 := func(i int) []string {
		path := fmt.Sprintf("issuers[%d].d1.", i)
		return []string{
			path + "baseUrl: must be an absolute https URL", path + "tokenUrl: must be an absolute https URL",
			path + "clientCertFile: is required", path + "signingKeyId: is required", path + "encryptionKeys: needs",
		}
	}
	want := []string{
		"line 2: unknown setting surprise", "environment: must be production, staging or development",
		"database.url: the environment has no CONFIG_TEST_NOT_SET", "database.directUrl: reading a secret: open " + missing,
		"database.maxConns: must not be negative",
		"keys.sealing: the sealing keyset is not", "keys.contentHash: must be 32 bytes in base64",
		"keys.notificationTokens[0].id: is required", "keys.notificationTokens[0].secret: must be 32 bytes",
		"keys.notificationTokens[1].secret: reading a secret: open " + missing,
		"keys.notificationTokens[2].id: is the id of another key", "keys.notificationTokens[2].secret: a secret is a value, {file: path} or {env: NAME}",
		"api.listen: must be host:port", "notifications.listen: must be host:port", "notifications.tls: loading certFile and keyFile",
		"admin.listen: must be host:port", "log.level: must be debug, info, warn or error",
		"clients[0].name: is required", "clients[0].tokenSha256: must be a SHA-256 in hex",
		"clients[0].scopes[1]: must each be one of orders:read", "clients[0].issuers[0]: names an issuer that is not configured",
		"clients[1].tokenSha256: is required",
		"clients[2].name: is the name of another client", "clients[2].tokenSha256: a secret is a value",
		"issuers[0].id: must be exactly 10 characters", "issuers[0].bins[1]: must be 6 to 8 digits",
		"issuers[0].duplicateWindow: must not be negative",
		"issuers[0].d1.baseUrl: must be an absolute", "issuers[0].d1.tokenUrl: must be an absolute",
		"issuers[0].d1.pathStyle: must be reference or lowercase", "issuers[0].d1.changePath: must be 1 to 4 parts", "issuers[0].d1.signingKey: must be a private key in PEM",
		"issuers[0].d1.signingKeyId: is required", "issuers[0].d1.caFile: open " + missing,
		"issuers[0].d1.clientCertFile: goes together with clientKeyFile",
		"issuers[0].d1.encryptionKeys[0].file: open " + missing, "issuers[0].d1.encryptionKeys[1].file: d1client: not a JWK",
		"issuers[0].sending.concurrency: must be 1 to 1024", "issuers[0].sending.callTimeout: must not", "issuers[0].sending.poll: must not",
		"issuers[0].sending.resendAfter: must not", "issuers[0].sending.retry404For: must not",
		"issuers[0].sending.ratePerSecond: must be 0", "issuers[0].sending.stopAfterRefusals: must be 2 to", "issuers[0].sending.giveUpAfter: must not", "issuers[0].sending.changeTimeout: must not",
		"issuers[0].sending.breakerThreshold: must be 1 to", "issuers[0].sending.afterUnknown: must be resend or wait",
		"issuers[0].notifications.clientId: is required", "issuers[0].notifications.clientSecret: is required",
		"issuers[0].notifications.clientCertificate: needs notifications.tls", "issuers[0].notifications.clientNames[0]: must be a name",
		"issuers[1].id: must be exactly 10", "issuers[1].d1.signingKey: reading a secret",
		"issuers[1].notifications.clientSecret: the environment has no", "issuers[1].notifications.clientNames: would be looked at by nobody",
		"issuers[2].id: must be exactly 10", "issuers[2].id: is the id of another issuer", "issuers[2].d1.signingKey: is required",
		"issuers[2].notifications.clientId: is required", "issuers[2].notifications.clientSecret: is required",
		"issuers[2].notifications.clientCertificate: needs notifications.tls",
	}
	wantFaults(t, text, append(append(want, d1(1)...), d1(2)...)...)
}

func TestDuplicates(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	client := "  - {name: bank, tokenSha256: {file: " + f.Path(local.FileTokenHash) + "}, scopes: [orders:read], issuers: [ISSUER0001]}\n"
	token := "    - {id: one, secret: {file: " + f.Path(local.FileNotificationKey) + "}}\n"
	_, issuer, _ := strings.Cut(f.minimal(), "issuers:\n")
	wantFaults(t, replaced(t, f.minimal(), client, client+client, token, token+token, "issuers:\n", "issuers:\n"+issuer),
		"keys.notificationTokens[1].id: is the id of another key", "clients[1].name: is the name of another client",
		"clients[1].tokenSha256: is the token of another client", "issuers[1].id: is the id of another issuer")

	other := filepath.Join(f.dir, "other.jwk")
	writeJWK(t, other, "d1-1")
	key := "{file: " + f.jwk + "}"
	wantFaults(t, replaced(t, f.minimal(), key, key+", {file: "+other+"}"),
		"issuers[0].d1.encryptionKeys: d1client: encryption key 1 has the key id of another")
	writeJWK(t, other, "d1-2")
	parse(t, replaced(t, f.minimal(), key, key+", {file: "+other+", notAfter: 2030-01-01T00:00:00Z}"))

	wantFaults(t, replaced(t, f.minimal(), "environment: development", "environment: development\nenvironment: production"),
		"line 2: the setting environment stands in line 1 already")
}

// A secret that stands where something else belongs is not told by the error.
// Each of D1's and the carriers' words means one thing.
func TestVocabulary(t *testing.T) {
	t.Parallel()
	minimal := newFiles(t).minimal()
	with := func(settings string) string {
		return replaced(t, minimal, "- id: ISSUER0001\n", "- id: ISSUER0001\n    "+settings+"\n")
	}
	in := parse(t, with(`onHoldStatuses: [CARD_PROD_HELD, "WAITING FOR STOCK"]
    deliveredStatuses: [DL, Zugestellt]
    returnedStatuses: [RT]`)).Issuers[0]
	if len(in.OnHoldStatuses) != 2 || len(in.DeliveredStatuses) != 2 || len(in.ReturnedStatuses) != 1 {
		t.Errorf("got %q, %q, %q", in.OnHoldStatuses, in.DeliveredStatuses, in.ReturnedStatuses)
	}
	wantFaults(t, with(`onHoldStatuses: [CARD_PROD_READY, "", HELD, HELD, CARD_RETURNED]
    deliveredStatuses: [" DL", DL, "D\u0000L"]
    returnedStatuses: [RT, DL, `+strings.Repeat("x", 129)+`]`),
		"issuers[0].onHoldStatuses[0]: has a meaning", "issuers[0].onHoldStatuses[1]: must be", "issuers[0].onHoldStatuses[3]: is there",
		"issuers[0].onHoldStatuses[4]: has a meaning", "issuers[0].deliveredStatuses[0]: must be", "issuers[0].deliveredStatuses[2]: must be",
		"issuers[0].returnedStatuses[1]: is one of", "issuers[0].returnedStatuses[2]: must be")
}

func TestErrorsHoldNoValues(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	const secret = "hunter2" // short enough for yaml to quote it whole
	for name, c := range map[string]struct{ old, now, want string }{
		"text for a list":         {"[orders:read]", secret, "line 9: must be a list of texts"},
		"text for settings":       {"database: {", "log: " + secret + "\ndatabase: {", "line 2: must be settings of its own"},
		"text for a list of them": {"encryptionKeys: [{file: " + f.jwk + "}]", "encryptionKeys: " + secret, "line 17: must be a list of settings"},
		"text for a duration":     {"    d1:", "    duplicateWindow: " + secret + "\n    d1:", "line 12: must be a duration such as 30s"},
		"number for a duration":   {"    d1:", "    duplicateWindow: 4111111111\n    d1:", "line 12: must be a duration such as 30s"},
		"text for a number":       {"database: {", "database: {maxConns: " + secret + ", ", "line 2: must be a whole number"},
		"text for a truth":        {"    d1:", "    sensitiveData: " + secret + "\n    d1:", "line 12: must be true or false"},
		"list for a text":         {"name: bank", "name: [" + secret + "]", "line 9: must be a text"},
		"back-quotes":             {"[orders:read]", "'a` into b `" + secret + "'", "line 9: must be a list of texts"},
		"lines":                   {"[orders:read]", "\"a\\n" + secret + "\"", "line 9: must be a list of texts"},
		"text for a time":         {"{file: " + f.jwk + "}", "{file: " + f.jwk + ", notAfter: " + secret + "}", "notAfter must be a time"},
		"alias":                   {"name: bank", "name: *" + secret, "a value that begins with * must stand in quotes"},
		"tag and value":           {"name: bank", "name: !!int " + secret, "a value does not fit its tag"},
		"as a name":               {"database: {", "database: {'postgres://" + secret + "@db/x': , ", "line 2: unknown setting\n"},
		"as a name twice":         {"database: {", "database: {'x://" + secret + "': , 'x://" + secret + "': , ", "line 2: the setting stands in line 2 already"},
		"as a place":              {"{file: " + f.Path(local.FileSealing) + "}", "{" + secret + ": " + secret + "}", "keys.sealing: a secret is a value"},
		"list of secrets":         {"{file: " + f.Path(local.FileSealing) + "}", "[" + secret + "]", "keys.sealing: a secret is a value"},
		"broken quotes":           {"name: bank", "name: \"" + secret, "not YAML: "},
		"broken indent":           {"database: {", secret + "\ndatabase: {", "not YAML: "},
		"password in a URL":       {"http://127.0.0.1:8180/banking", "http://u:" + secret + "@127.0.0.1/banking", "issuers[0].d1.baseUrl: must be an absolute"},
		"broken URL":              {"http://127.0.0.1:8180/banking", "http://" + secret + "%zz/banking", "issuers[0].d1.baseUrl: must be an absolute"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := config.Parse([]byte(replaced(t, f.minimal(), c.old, c.now)))
			if err == nil {
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error()+"\n", c.want) {
				t.Errorf("error lacks %q: %v", c.want, err)
			}
			wantNone(t, err.Error(), secret, "4111")
		})
	}
}

// What does not parse at all is one fault, not dozens of missing settings.
func TestNotYAML(t *testing.T) {
	t.Parallel()
	wantFaults(t, "environment: [", "not YAML: line 1:")
	wantFaults(t, newFiles(t).minimal()+"---\nenvironment: production\n", "there is a second document (after ---)")
}

func TestEnvironmentOverrides(t *testing.T) {
	f := newFiles(t)
	sealing, err := f.Read(local.FileSealing)
	if err != nil {
		t.Fatal(err)
	}
	hash, err := f.Read(local.FileContentHash)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"CARDORDER_DATABASE_URL": "postgres://from-env/a", "CARDORDER_DATABASE_DIRECT_URL": "postgres://from-env/b",
		"CARDORDER_SEALING_KEYSET": sealing, "CARDORDER_CONTENT_HASH_KEY": hash,
	} {
		t.Setenv(name, value)
	}
	// They win, also over places that cannot be read.
	cfg := parse(t, replaced(t, f.minimal(), "url: \""+databaseURL+"\"", "url: {env: CONFIG_TEST_NOT_SET}, directUrl: {file: /missing}",
		f.Path(local.FileSealing), "/missing", f.Path(local.FileContentHash), "/missing"))
	if cfg.Database.URL.Reveal() != "postgres://from-env/a" || cfg.Database.DirectURL.Reveal() != "postgres://from-env/b" ||
		cfg.Keys.Sealing.Reveal() != sealing || cfg.Keys.ContentHash.Reveal() != hash {
		t.Error("the environment does not win")
	}
	t.Setenv("CARDORDER_DATABASE_URL", "") // set is set: an empty one must not fall back silently
	wantFaults(t, f.minimal(), "database.url: is required")
	t.Setenv("CARDORDER_DATABASE_URL", "postgres://from-env/a")
	t.Setenv("CARDORDER_DATABASE_MIGRATE_URL", "postgres://from-env/c") // its name of before
	wantFaults(t, f.minimal(), "the variable CARDORDER_DATABASE_MIGRATE_URL is now called CARDORDER_DATABASE_DIRECT_URL")
}

func TestEnvironmentFitsHosts(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	const (
		production = "https://api.d1.thalescloud.io"
		staging    = "https://api.d1-stg.thalescloud.io"
	)
	mutual := "      clientCertFile: " + f.certificate + "\n      clientKeyFile: " + f.key + "\n      caFile: " + f.authority + "\n"
	text := func(environment, base, token string) string {
		return replaced(t, f.minimal(), "environment: development", "environment: "+environment,
			"http://127.0.0.1:8180/banking", base+"/banking", "http://127.0.0.1:8180/authz", token+"/authz",
			"      signingKeyId", mutual+"      signingKeyId")
	}
	for _, c := range []struct{ environment, base, token string }{
		{"production", production, production},
		{"production", "https://API.D1.ThalesCloud.io:443", production},
		{"staging", staging, staging},
		{"development", staging, staging},
		{"development", "http://localhost:1", "https://127.0.0.1:2"},
	} {
		parse(t, text(c.environment, c.base, c.token))
	}
	for _, c := range []struct {
		environment, base, token string
		baseFault, tokenFault    string
	}{
		{"production", staging, production, "host api.d1-stg.thalescloud.io is not a D1 of the production environment", ""},
		{"production", production, staging, "", "host api.d1-stg.thalescloud.io is not"},
		{"production", "https://API.D1-STG.thalescloud.io", production, "host api.d1-stg.thalescloud.io is not", ""},
		{"production", "https://api.d1-stg.thalescloud.io.", production, "host api.d1-stg.thalescloud.io is not", ""},
		{"production", "https://127.0.0.1", "https://thalescloud.io.example.com", "host 127.0.0.1 is not", "host thalescloud.io.example.com is not"},
		{"production", "https://evilthalescloud.io", production, "host evilthalescloud.io is not", ""},
		{"production", "http://api.d1.thalescloud.io", production, "must be an absolute https URL", ""},
		{"staging", production, production, "host api.d1.thalescloud.io is not a D1 of the staging", "host api.d1.thalescloud.io is not"},
		{"staging", "https://localhost", staging, "host localhost is not", ""},
		{"staging", "http://api.d1-stg.thalescloud.io", staging, "must be an absolute https URL", ""},
		{"development", production, staging, "host api.d1.thalescloud.io is not a D1 of the development", ""},
		{"development", staging, "https://api.d1.THALESCLOUD.IO", "", "host api.d1.thalescloud.io is not"},
		{"development", staging, "https://api.d1.thalescloud.io.", "", "host api.d1.thalescloud.io is not"},
	} {
		var want []string
		if c.baseFault != "" {
			want = append(want, "issuers[0].d1.baseUrl: "+c.baseFault)
		}
		if c.tokenFault != "" {
			want = append(want, "issuers[0].d1.tokenUrl: "+c.tokenFault)
		}
		wantFaults(t, text(c.environment, c.base, c.token), want...)
	}
}

func TestClientCertificate(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	staging := replaced(t, f.minimal(), "environment: development", "environment: staging", "http://127.0.0.1:8180", "https://api.d1-stg.thalescloud.io")
	wantFaults(t, staging, "issuers[0].d1.clientCertFile: is required, with clientKeyFile: D1 accepts mutual TLS only")
	with := func(certificate, key string) string {
		return replaced(t, staging, "      signingKeyId", "      clientCertFile: "+certificate+"\n      clientKeyFile: "+key+"\n      signingKeyId")
	}
	wantFaults(t, with(f.certificate, `""`), "issuers[0].d1.clientCertFile: goes together with clientKeyFile")
	wantFaults(t, with(f.certificate, f.Path(local.FileSigningKey)), "issuers[0].d1.clientCertFile: tls: private key does not match")

	cfg := parse(t, with(f.certificate, f.key))
	client, err := cfg.Issuers[0].ClientConfig(cfg.Environment)
	if err != nil {
		t.Fatal(err)
	}
	first, err := client.TLS.GetClientCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	next := newFiles(t) // a rotated certificate is used without a restart
	for from, to := range map[string]string{next.certificate: f.certificate, next.key: f.key} {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	second, err := client.TLS.GetClientCertificate(nil)
	if err != nil || string(first.Certificate[0]) == string(second.Certificate[0]) {
		t.Errorf("the old certificate is still used (%v)", err)
	}
}

func TestListenersWithTLS(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	text := func(ca string) string { return strings.Replace(f.mutual(), f.authority, ca, 1) + f.minimal() }
	cfg := parse(t, text(f.authority))
	if cfg.Notifications.Listen != ":8081" || cfg.Notifications.TLS == nil {
		t.Errorf("%+v", cfg.Notifications)
	}
	wantFaults(t, text(f.key), "notifications.tls: loading clientCaFile: there is no certificate in it")

	// Half a file is none, whatever its first half says.
	whole, err := os.ReadFile(f.authority)
	if err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(f.dir, "half.pem")
	write(t, half, string(whole)+string(whole[:len(whole)/2]))
	wantFaults(t, text(half), "notifications.tls: loading clientCaFile: it is cut off")
	write(t, half, string(whole)+"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	wantFaults(t, text(half), "notifications.tls: loading clientCaFile: a certificate in it cannot be read")
	write(t, half, "Authority one\n"+string(whole)+"\nAuthority two\n"+string(whole))
	parse(t, text(half))
}

// D1 has to show a certificate and a token, unless each is switched off by its name.
func TestWayIn(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	bare := replaced(t, f.minimal(), ", clientCertificate: false", "")
	n := &parse(t, f.mutual()+bare).Issuers[0].Notifications
	if !n.WantsToken() || !n.WantsCertificate() {
		t.Errorf("by default: token %v, certificate %v", n.WantsToken(), n.WantsCertificate())
	}
	const fault = "issuers[0].notifications.clientCertificate: needs notifications.tls with clientCaFile"
	wantFaults(t, bare, fault)
	wantFaults(t, strings.Replace(f.mutual(), ", clientCaFile: "+f.authority, "", 1)+bare, fault)
	wantFaults(t, replaced(t, bare, "clientId: d1", "token: false, clientId: d1"), fault) // one of two is not both

	credentials := "clientId: d1, clientSecret: {file: " + f.Path(local.FileD1ClientSecret) + "}"
	n = &parse(t, f.mutual()+replaced(t, bare, credentials, "token: false, clientNames: [d1.example]")).Issuers[0].Notifications
	if n.WantsToken() || !n.WantsCertificate() {
		t.Errorf("by certificate alone: token %v, certificate %v", n.WantsToken(), n.WantsCertificate())
	}
	n = &parse(t, replaced(t, bare, credentials, "token: false, clientCertificate: false")).Issuers[0].Notifications
	if n.WantsToken() || n.WantsCertificate() {
		t.Errorf("by neither: token %v, certificate %v", n.WantsToken(), n.WantsCertificate())
	}
}

func TestSummary(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	cfg := parse(t, f.minimal())
	summary, err := cfg.Summary()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(summary)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"url":"[set]"`, `"concurrency":16`, `"resendAfter":"5m0s"`, `"level":"info"`, `"issuers":["ISSUER0001"]`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the summary lacks %s: %s", want, text)
		}
	}
	told := fmt.Sprintf("%s %v %+v %#v %+v", text, summary, cfg, cfg, cfg.Issuers)
	wantNone(t, told, hidden)
	for _, name := range []string{
		local.FileSealing, local.FileContentHash, local.FileNotificationKey, local.FileD1ClientSecret, local.FileTokenHash, local.FileSigningKey,
	} {
		value, err := f.Read(name)
		if err != nil {
			t.Fatal(err)
		}
		wantNone(t, told, strings.TrimSpace(value), strings.TrimSpace(value)[10:40])
	}
}

// The example must stay right. Its paths start at the root of the repository.
func TestExample(t *testing.T) {
	f := newFiles(t)
	writeJWK(t, f.Path("d1sim-encryption-key.json.pub.json"), "example")
	t.Setenv("CARDORDER_DATABASE_URL", databaseURL)
	text, err := os.ReadFile("../../deploy/example/server.yaml")
	if err != nil {
		t.Fatal(err)
	}
	cfg := parse(t, replaced(t, string(text), "deploy/example/keys", filepath.Join(f.dir, "keys"),
		"deploy/example/programs.yaml", "../../deploy/example/programs.yaml"))
	if cfg.Database.URL.Reveal() != databaseURL {
		t.Error("no database URL")
	}
	text, err = os.ReadFile("../../deploy/example/compose/server.yaml")
	if err != nil {
		t.Fatal(err)
	}
	parse(t, replaced(t, string(text), "/keys/", filepath.Join(f.dir, "keys")+"/"))
}
