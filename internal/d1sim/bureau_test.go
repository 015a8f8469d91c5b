package d1sim_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"cardorder/internal/d1sim"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/uuid"
)

const (
	issuerID    = "bank000001"
	lowercaseID = "bank000002" // an issuer of the lowercase path style
	kid         = "signing-1"
	patience    = time.Minute // how long a test waits for what must happen
)

// fast lets cards walk without delay and failed notifications leave again soon.
var fast = d1sim.Settings{
	StepInterval: d1sim.Duration(time.Millisecond),
	RetryBackoff: d1sim.Duration(time.Millisecond),
}

// still keeps cards at their first status.
var still = d1sim.Settings{StopAt: d1sim.CardProdRequested}

// bureau is a running simulator with a bank that speaks to it.
type bureau struct {
	t          *testing.T
	sim        *d1sim.Sim
	url        string
	management *d1sim.Client
	bank       *bank
	signingKey *ecdsa.PrivateKey
	token      string
}

func newBureau(t *testing.T, set d1sim.Settings) *bureau {
	t.Helper()
	b := &bureau{t: t, signingKey: newKey(t), bank: newBank(t)}
	keys := map[string]*ecdsa.PublicKey{kid: &b.signingKey.PublicKey}
	sim, err := d1sim.New(d1sim.Config{
		Issuers: []d1sim.Issuer{
			{ID: issuerID, SigningKeys: keys},
			{ID: lowercaseID, SigningKeys: keys, PathStyle: d1sim.PathLowercase},
		},
		Aggregators: []d1sim.Aggregator{{ID: "aggregator", SigningKeys: keys, IssuerIDs: []string{issuerID, lowercaseID}}},
		Settings:    set,
		Logger:      slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	b.sim = sim
	if err := sim.SetNotificationTarget(issuerID, b.bank.server.URL+"/notifications", b.bank.server.URL+"/token", "d1", "secret"); err != nil {
		t.Fatal(err)
	}

	server := httptest.NewServer(sim.Handler())
	management := httptest.NewServer(sim.ManagementHandler())
	t.Cleanup(server.Close)
	t.Cleanup(management.Close)
	b.url, b.management = server.URL, d1sim.NewClient(management.URL, nil)

	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- sim.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	b.token = b.fetchToken(b.claims(issuerID))
	return b
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// wait waits for a condition; not meeting it fails the test.
func (b *bureau) wait(c d1sim.Condition) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := b.sim.Wait(ctx, c); err != nil {
		b.t.Fatalf("waiting for %+v: %v", c, err)
	}
}

func (b *bureau) set(change func(*d1sim.Settings)) {
	b.t.Helper()
	if err := b.sim.UpdateSettings(change); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bureau) script(sc d1sim.Script) {
	b.t.Helper()
	if err := b.sim.Script(sc); err != nil {
		b.t.Fatal(err)
	}
}

// claims are those of a good assertion.
func (b *bureau) claims(iss string) map[string]any {
	now := time.Now()
	return map[string]any{
		"iss": iss, "sub": iss, "aud": d1sim.DefaultAudience, "jti": uuid.NewString(),
		"iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
	}
}

func (b *bureau) assertion(claims map[string]any) string {
	return sign(b.t, jose.ES256, b.signingKey, map[jose.HeaderKey]any{"kid": kid, "typ": "JWT"}, claims)
}

func sign(t *testing.T, alg jose.SignatureAlgorithm, key any, header map[jose.HeaderKey]any, claims any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, &jose.SignerOptions{ExtraHeaders: header})
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// grant asks for a token with a form.
func (b *bureau) grant(assertion string) answer {
	b.t.Helper()
	form := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {assertion}}
	return b.send(http.MethodPost, "/authz/v1/oauth2/token", form.Encode(),
		http.Header{"Content-Type": {"application/x-www-form-urlencoded"}})
}

func (b *bureau) fetchToken(claims map[string]any) string {
	b.t.Helper()
	got := b.grant(b.assertion(claims))
	if got.status != http.StatusOK {
		b.t.Fatalf("token: %d %s", got.status, got.body)
	}
	return got.json(b.t)["access_token"].(string)
}

// answer is what came back: err when the connection was cut.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error
}

func (a answer) json(t *testing.T) map[string]any {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal(a.body, &object); err != nil {
		t.Fatalf("body %q: %v", a.body, err)
	}
	return object
}

// straight follows no redirect.
var straight = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

func (b *bureau) send(method, path, body string, header http.Header) answer {
	req, err := http.NewRequestWithContext(b.t.Context(), method, b.url+path, strings.NewReader(body))
	if err != nil {
		return answer{err: err}
	}
	req.Header = header
	resp, err := straight.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{status: resp.StatusCode, header: resp.Header, body: text, err: err}
}

func (b *bureau) header() http.Header {
	return http.Header{"Authorization": {"Bearer " + b.token}, "Content-Type": {"application/json"}}
}

const productionPath = "/banking/v1/issuers/" + issuerID + "/physicalCards/%s/operations:production"

func productionURL(cardID string) string { return strings.Replace(productionPath, "%s", cardID, 1) }

// order sends an order.
func (b *bureau) order(cardID string, body map[string]any) answer {
	b.t.Helper()
	return b.send(http.MethodPost, productionURL(cardID), toJSON(b.t, body), b.header())
}

// accepted sends an order that must be accepted and returns its operationId.
func (b *bureau) accepted(cardID string, body map[string]any) string {
	b.t.Helper()
	got := b.order(cardID, body)
	if got.status != http.StatusAccepted {
		b.t.Fatalf("order: %d %s %v", got.status, got.body, got.err)
	}
	return got.json(b.t)["operationId"].(string)
}

func (b *bureau) productionStatus(cardID string) answer {
	b.t.Helper()
	return b.send(http.MethodGet, "/banking/v1/issuers/"+issuerID+"/physicalCards/"+cardID+"/productionStatus", "", b.header())
}

// operations are those that productionStatus shows.
func (b *bureau) operations(cardID string) []d1sim.Operation {
	b.t.Helper()
	got := b.productionStatus(cardID)
	if got.status != http.StatusOK {
		b.t.Fatalf("status: %d %s", got.status, got.body)
	}
	return decodeOperations(b.t, got.body)
}

func decodeOperations(t *testing.T, body []byte) []d1sim.Operation {
	t.Helper()
	var envelope struct{ Operations []d1sim.Operation }
	if err := json.Unmarshal(body, &envelope); err != nil {
		t.Fatal(err)
	}
	return envelope.Operations
}

// thales is a good order, shipped in the end.
func (b *bureau) thales(issuerRequestID string) map[string]any {
	b.t.Helper()
	return map[string]any{
		"distributionChannel": "THALES",
		"issuerRequestId":     issuerRequestID,
		"consumerId":          "consumer-1",
		"cardProductId":       "gold",
		"services":            map[string]any{"issuance": "CREATION", "delivery": "STANDARD", "pinMailer": true},
		"encryptedData":       b.encrypt(map[string]any{"pan": "4111111111111111", "exp": "3012", "name": "ALICE EXAMPLE"}),
		"paymentApplication":  map[string]any{"config": "profile-1", "odaKeyIndex": "01", "derivationKeyIndex": "02"},
		"shipment": map[string]any{
			"type": "INDIVIDUAL",
			"deliveryAddress": map[string]any{
				"line1": "1 Example Street", "zipCode": "1000", "city": "Brussels", "countryCode": "BE",
			},
		},
	}
}

func (b *bureau) encrypt(cardData any) string {
	b.t.Helper()
	key := b.sim.EncryptionKey()
	return encryptFor(b.t, jose.Recipient{Algorithm: jose.ECDH_ES, Key: key.Key, KeyID: key.KeyID}, jose.A256GCM, toJSON(b.t, cardData))
}

func encryptFor(t *testing.T, to jose.Recipient, enc jose.ContentEncryption, plaintext string) string {
	t.Helper()
	encrypter, err := jose.NewEncrypter(enc, to, nil)
	if err != nil {
		t.Fatal(err)
	}
	jwe, err := encrypter.Encrypt([]byte(plaintext))
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwe.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func toJSON(t *testing.T, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// bank is the issuer's side: a token endpoint and a notification endpoint.
type bank struct {
	t      *testing.T
	server *httptest.Server

	mu     sync.Mutex
	tokens int                // handed out
	calls  [][]byte           // bodies of the notification calls, refused ones too
	answer func(call int) int // the status for the n-th call, from 1
	grant  string             // what the token endpoint answers; %s is the token
}

func newBank(t *testing.T) *bank {
	b := &bank{
		t:      t,
		answer: func(int) int { return http.StatusNoContent },
		grant:  `{"access_token":"%s","token_type":"Bearer","expires_in":"900"}`,
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", b.serveToken)
	mux.HandleFunc("POST /notifications", b.serveNotifications)
	b.server = httptest.NewServer(mux)
	t.Cleanup(b.server.Close)
	return b
}

func (b *bank) answers(answer func(call int) int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = answer
}

func (b *bank) serveToken(w http.ResponseWriter, r *http.Request) {
	id, secret, _ := r.BasicAuth()
	if id != "d1" || secret != "secret" || r.FormValue("grant_type") != "client_credentials" {
		b.t.Errorf("token request of %q with grant type %q", id, r.FormValue("grant_type"))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens++
	_, _ = io.WriteString(w, strings.Replace(b.grant, "%s", b.lastToken(), 1))
}

func (b *bank) lastToken() string { return "token-" + string(rune('0'+b.tokens)) }

func (b *bank) serveNotifications(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	b.mu.Lock()
	defer b.mu.Unlock()
	if got := r.Header.Get("Authorization"); got != "Bearer "+b.lastToken() {
		b.t.Errorf("notification with Authorization %q, want the token %s", got, b.lastToken())
	}
	b.calls = append(b.calls, body)
	status := b.answer(len(b.calls))
	w.WriteHeader(status)
	if status == http.StatusOK {
		_, _ = io.WriteString(w, "ok")
	}
}

// received lists the operations of every call.
func (b *bank) received() [][]d1sim.Operation {
	b.mu.Lock()
	defer b.mu.Unlock()
	var calls [][]d1sim.Operation
	for _, body := range b.calls {
		calls = append(calls, decodeOperations(b.t, body))
	}
	return calls
}

// statuses lists details.status of every operation received, in order of arrival.
func (b *bank) statuses() []string {
	var statuses []string
	for _, call := range b.received() {
		for _, op := range call {
			statuses = append(statuses, op.Details.Status)
		}
	}
	return statuses
}

func (b *bank) tokensGiven() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.tokens
}
