package d1client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	testIssuer = "issuer0001"
	testCard   = "card-1"
	// secretMark stands in whatever must never reach an error, a log or a metric.
	secretMark = "s3cr3t-m4rk"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// signingKey is one for all tests.
var signingKey = sync.OnceValue(func() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
})

// fakeD1 answers both endpoints over plain HTTP. Tokens are named token-1, token-2...
type fakeD1 struct {
	*httptest.Server
	tokens atomic.Int64 // fetched
	orders atomic.Int64 // requests to the cards' endpoint
}

func newFakeD1(t *testing.T, cards http.HandlerFunc) *fakeD1 {
	t.Helper()
	d := &fakeD1{}
	mux := http.NewServeMux()
	mux.HandleFunc("/token", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{
			"access_token": fmt.Sprintf("token-%d", d.tokens.Add(1)), "token_type": "Bearer", "expires_in": 900,
		})
	})
	mux.HandleFunc("/banking/v1/", func(w http.ResponseWriter, r *http.Request) {
		d.orders.Add(1)
		cards(w, r)
	})
	d.Server = httptest.NewServer(mux)
	t.Cleanup(d.Close)
	return d
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func accept(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusAccepted, map[string]any{"operationId": "op-1"})
}

func (d *fakeD1) config() Config {
	return Config{
		IssuerID: testIssuer, BaseURL: d.URL + "/banking/v1", TokenURL: d.URL + "/token", AllowHTTP: true,
		SigningKey: signingKey(), SigningKeyID: "sig-1",
	}
}

func newClient(t *testing.T, cfg Config) *Client {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// callContext is long enough never to end by itself, and ends all the same.
func callContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func sampleOrder() Call {
	return Call{CardID: testCard, CorrelationID: "corr-1", Body: []byte(`{"name":"` + secretMark + `"}`)}
}

func wantAnswer(t *testing.T, got Answer, outcome Outcome, reasons ...Reason) {
	t.Helper()
	ok := false
	for _, r := range reasons {
		ok = ok || got.Reason == r
	}
	if got.Outcome != outcome || !ok {
		t.Errorf("got %v, %v (status %d, err %v), want %v, %v", got.Outcome, got.Reason, got.Status, got.Err, outcome, reasons)
	}
	if got.Err != nil && strings.Contains(fmt.Sprintf("%v %+v %#v", got.Err, got.Err, got.Err), secretMark) {
		t.Errorf("error holds content: %v", got.Err)
	}
}

// authority makes certificates for 127.0.0.1 and for clients.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, key: newKey(t), pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) issue(commonName string) *tls.Certificate {
	a.t.Helper()
	key := newKey(a.t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: commonName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// parseAssertion returns header and claims of a JWT signed with signingKey.
func parseAssertion(compact string) (jose.Header, map[string]any, error) {
	signed, err := jose.ParseSignedCompact(compact, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return jose.Header{}, nil, err
	}
	payload, err := signed.Verify(&signingKey().PublicKey)
	if err != nil {
		return jose.Header{}, nil, err
	}
	var claims map[string]any
	err = json.Unmarshal(payload, &claims)
	return signed.Signatures[0].Header, claims, err
}
