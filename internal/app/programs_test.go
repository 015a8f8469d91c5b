package app_test

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cardorder/internal/config"
	"cardorder/internal/local"
)

const programs = "/v1/issuers/" + local.IssuerID + "/programs"

// goldProgram allows what bank.thales asks for.
const goldProgram = `issuers:
  - issuerId: ISSUER0001
    programs:
      - cardProductId: silver
      - cardProductId: gold
        distributionChannels: [THALES]
        destinationCountries: [FR, DE]
        deliveryMethods: [POST]
        inserts: []
        paymentApplications: [{config: visa, odaKeyIndexes: ["1"], pvKeyIndexes: []}]
        names: {characters: "[A-Za-z ]", length: 20}
        endsAt: SHIPPED
        duplicateWindow: 100h
        sla: {workingDays: {CREATION: 1, RENEWAL: 10}, cutOff: "12:00", timeZone: Europe/Paris}
`

// programsFile writes a programs file and returns its path and an adjustment that
// names it.
func programsFile(t *testing.T, text string) (path string, adjust func(*config.Config)) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "programs.yaml")
	rewrite(t, path, text)
	return path, func(cfg *config.Config) { cfg.ProgramsFile = path }
}

func rewrite(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func digestOf(text string) string {
	digest := sha256.Sum256([]byte(text))
	return hex.EncodeToString(digest[:])
}

// read returns what stands at a URL.
func (b *bank) read(url string) string {
	b.t.Helper()
	a := b.send(http.MethodGet, url, nil, "")
	if a.status != http.StatusOK {
		b.t.Fatalf("%s: %d", url, a.status)
	}
	return strings.TrimSpace(a.text)
}

// wantPrograms demands that the given text is in effect, everywhere.
func (b *bank) wantPrograms(text string, lastReload string) {
	b.t.Helper()
	digest := digestOf(text)
	if a := b.do(http.MethodGet, programs, nil, nil); !strings.HasPrefix(a.text, `{"configured":true,"digest":"`+digest+`","data":[`) {
		b.t.Errorf("the programs are %s", a.text)
	}
	for _, listener := range []string{"api", "admin"} {
		if got := b.read(b.env.Service.URL(listener) + "/readyz"); got != `{"status":"ok","programsDigest":"`+digest+`"}` {
			b.t.Errorf("/readyz of %s: %s", listener, got)
		}
	}
	metrics := b.metrics()
	for _, want := range []string{
		`cardorder_programs_info{digest="` + digest + `"} 1`,
		"cardorder_programs_last_reload_successful " + lastReload,
		"cardorder_programs_last_reload_success_timestamp_seconds 1.",
	} {
		if !strings.Contains(metrics, "\n"+want) {
			b.t.Errorf("no %s", want)
		}
	}
	if n := strings.Count(metrics, "cardorder_programs_info{"); n != 1 {
		b.t.Errorf("%d digests are in effect", n)
	}
}

func TestProgramsAreShown(t *testing.T) {
	t.Parallel()
	_, adjust := programsFile(t, goldProgram)
	b := newBank(t, fast, adjust)
	b.wantPrograms(goldProgram, "1")
	want := `{"configured":true,"digest":"` + digestOf(goldProgram) + `","data":[` +
		`{"cardProductId":"gold","distributionChannels":["THALES"],"destinationCountries":["FR","DE"],"deliveryMethods":["POST"],` +
		`"inserts":[],"paymentApplications":[{"config":"visa","odaKeyIndexes":["1"],"pvKeyIndexes":[]}],` +
		`"alphaCard":false,"nameCharacters":"[A-Za-z ]","nameLength":20,"endsAt":"SHIPPED","duplicateWindowSeconds":360000,` +
		`"sla":{"workingDays":{"CREATION":1,"RENEWAL":10},"cutOff":"12:00","timeZone":"Europe/Paris","weekend":["SATURDAY","SUNDAY"],"holidays":[]},` +
		`"silentAfterSeconds":86400,"dispatchDelaySeconds":0},` +
		`{"cardProductId":"silver","alphaCard":false,"nameCharacters":"[\\p{L}\\p{M}\\p{Nd} .'/-]","nameLength":26,"duplicateWindowSeconds":2592000,` +
		`"silentAfterSeconds":86400,"dispatchDelaySeconds":0}]}`
	if got := strings.TrimSpace(b.do(http.MethodGet, programs, nil, nil).text); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for path, status := range map[string]int{
		programs + "?cardProductId=gold":  http.StatusBadRequest,
		"/v1/issuers/NOBODY0001/programs": http.StatusNotFound,
	} {
		if a := b.do(http.MethodGet, path, nil, nil); a.status != status {
			t.Errorf("GET %s: %d, want %d", path, a.status, status)
		}
	}
	if a := b.do(http.MethodGet, programs, http.Header{"Authorization": nil}, nil); a.status != http.StatusUnauthorized {
		t.Errorf("without a token: %d", a.status)
	}
}

func TestWithoutPrograms(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	if got := strings.TrimSpace(b.do(http.MethodGet, programs, nil, nil).text); got != `{"configured":false,"data":[]}` {
		t.Errorf("the programs are %s", got)
	}
	for _, listener := range []string{"api", "admin"} {
		if got := b.read(b.env.Service.URL(listener) + "/readyz"); got != `{"status":"ok"}` {
			t.Errorf("/readyz of %s: %s", listener, got)
		}
	}
	b.env.Service.ReloadPrograms()
	if strings.Contains(b.metrics(), "cardorder_programs_") {
		t.Error("there are metrics of programs")
	}
}

// An issuer without a single program may order nothing.
func TestEmptyProgramsAllowNothing(t *testing.T) {
	t.Parallel()
	const none = "issuers: [{issuerId: ISSUER0001, programs: []}]\n"
	_, adjust := programsFile(t, none)
	b := newBank(t, fast, adjust)
	b.wantPrograms(none, "1")
	a := b.post(b.thales("1"), nil)
	if a.status != 400 || len(a.view.Errors) != 1 || !strings.Contains(a.text, `"pointer":"/cardProductId","code":"outside-program"`) || !strings.Contains(a.text, `"rule":"cardProducts"`) {
		t.Errorf("%d %s", a.status, a.text)
	}
}

// Kubernetes mounts a file behind two symbolic links and exchanges the upper one.
func TestProgramsReloadByChange(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	silverProgram := strings.ReplaceAll(goldProgram, "DE]", "DE, GB]")
	for name, text := range map[string]string{"one": goldProgram, "two": silverProgram} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		rewrite(t, filepath.Join(dir, name, "programs.yaml"), text)
	}
	link := func(from, to string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(dir, from+".new")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, from+".new"), filepath.Join(dir, from)); err != nil {
			t.Fatal(err)
		}
	}
	link("..data", "one")
	link("programs.yaml", filepath.Join("..data", "programs.yaml"))
	b := newBank(t, fast, func(cfg *config.Config) { cfg.ProgramsFile = filepath.Join(dir, "programs.yaml") })
	b.wantPrograms(goldProgram, "1")
	link("..data", "two")
	b.eventually("the change is found", func() bool {
		return strings.Contains(b.read(b.env.Ready.APIURL+"/readyz"), digestOf(silverProgram))
	})
	b.wantPrograms(silverProgram, "1")
}

func TestBadProgramsChangeNothing(t *testing.T) {
	t.Parallel()
	path, adjust := programsFile(t, goldProgram)
	b := newBank(t, fast, adjust)
	for _, bad := range []string{"", "issuers: [", goldProgram + "surprise: 1\n", strings.ReplaceAll(goldProgram, "FR", "XX"), "issuers: []"} {
		rewrite(t, path, bad)
		b.env.Service.ReloadPrograms()
		b.wantPrograms(goldProgram, "0")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	b.env.Service.ReloadPrograms()
	b.wantPrograms(goldProgram, "0")

	rewrite(t, path, goldProgram) // as it was
	b.env.Service.ReloadPrograms()
	b.wantPrograms(goldProgram, "1")
	other := goldProgram + "# another\n"
	rewrite(t, path, other)
	b.env.Service.ReloadPrograms()
	b.wantPrograms(other, "1")
}

// What was accepted once stays accepted: a caller whose answer got lost must not take
// its order for refused, and order another one, because an agreement or a key of D1
// has changed meanwhile.
func TestRepeatsOutliveTheRules(t *testing.T) {
	t.Parallel()
	path, adjust := programsFile(t, goldProgram)
	b := newBank(t, fast, adjust)
	o := b.thales("1")
	key := func(k string) http.Header { return http.Header{"Idempotency-Key": {k}} }
	id := b.post(o, key("key-1")).view.ID

	check := func(when string, fault string) {
		t.Helper()
		for how, header := range map[string]http.Header{"by both keys": key("key-1"), "by its id": nil, "with a new key": key(when)} {
			if a := b.post(o, header); a.status != 200 || a.view.ID != id || a.header.Get("Idempotent-Replayed") != "true" || len(a.view.Warnings) > 0 {
				t.Errorf("%s, the same %s: %d %s", when, how, a.status, a.text)
			}
		}
		if a := b.do(http.MethodGet, orders+"?idempotencyKey="+when, nil, nil); len(a.view.Data) != 1 {
			t.Errorf("%s, the new key was not bound", when)
		}
		if a := b.do(http.MethodPost, orders+"?dryRun=true", nil, mustJSON(t, o)); a.status != 200 || !strings.Contains(a.text, `"outcome":"replayed"`) {
			t.Errorf("%s, a dry run: %d %s", when, a.status, a.text)
		}
		row := b.upload("", "batch-"+when, "application/x-ndjson", strings.NewReader(b.lines(o)), nil)
		if row.status != 201 || row.Rows.Replayed != 1 {
			t.Errorf("%s, in a batch: %d %s", when, row.status, row.text)
		}
		if row := b.upload("?dryRun=true", "dry-"+when, "application/x-ndjson", strings.NewReader(b.lines(o)), nil); row.Rows.Replayed != 1 {
			t.Errorf("%s, in a dry run of a batch: %d %s", when, row.status, row.text)
		}
		for name, other := range map[string]body{"another content": o.with(body{"urgent": true}), "another order": b.thales("2").with(body{"encryptedData": o["encryptedData"]})} {
			a := b.post(other, nil)
			if a.status != 400 || len(a.view.Errors) != 1 || a.view.Errors[0].Pointer+" "+a.view.Errors[0].Code != fault {
				t.Errorf("%s, %s: %d %s", when, name, a.status, a.text)
			}
		}
	}
	rewrite(t, path, strings.ReplaceAll(goldProgram, "FR, DE", "DE"))
	b.env.Service.ReloadPrograms()
	check("another-agreement", "/shipment/deliveryAddress/countryCode outside-program")

	rewrite(t, path, goldProgram)
	if err := b.env.StopService(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.env.ServiceConfig().Issuers[0].D1.EncryptionKeys[0].NotAfter = time.Now().Add(-time.Second)
	if err := b.env.StartService(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("a-retired-key", "/encryptedData invalid-format")
	if n := b.stored(); n != 1 {
		t.Errorf("%d orders were stored", n)
	}
}

// The window is the one that is in effect when the card was made.
func TestProgramsDuplicateWindow(t *testing.T) {
	t.Parallel()
	path, adjust := programsFile(t, goldProgram)
	b := newBank(t, fast, adjust)
	wantHours := func(name, product string, want int) {
		t.Helper()
		b.await(b.place(b.thales(name).with(body{"cardProductId": product})), "SHIPPED")
		got := query[int](b, `SELECT round(extract(epoch FROM creation_until - now()) / 3600)::int FROM card_guard WHERE card_id = $1`, "card-"+name)
		if got != want {
			t.Errorf("card %s is guarded for %d hours, want %d", name, got, want)
		}
	}
	wantHours("1", "gold", 100)
	wantHours("2", "silver", 720) // the issuer's, which is the default
	rewrite(t, path, strings.ReplaceAll(goldProgram, "100h", "10h"))
	b.env.Service.ReloadPrograms()
	wantHours("3", "gold", 10)
}
