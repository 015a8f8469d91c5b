package api

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"
)

// d1Side tells D1 from whoever else reaches its listener: by a client certificate, by a
// token of ours, or by both, as each issuer agreed with Thales.
type d1Side struct {
	Config
	tokens *tokens
	now    func() time.Time
}

func newD1Side(cfg Config) *d1Side {
	return &d1Side{Config: cfg, tokens: &tokens{keys: cfg.TokenKeys, now: time.Now}, now: time.Now}
}

// refusal is why a caller is not taken for D1: a label of metrics, and a word in the log.
type refusal string

// The refusals. What TLS itself turns away never gets here (see the handshakes that
// failed).
const (
	refusedNoCertificate      refusal = "no-certificate"
	refusedCertificateExpired refusal = "certificate-expired" // since the connection was made
	refusedAuthority          refusal = "authority"           // of the certificate is not trusted any more
	refusedName               refusal = "name"                // of the certificate is not D1's
	refusedNoToken            refusal = "no-token"
	refusedToken              refusal = "token" // forged, or of a key that is not ours
	refusedTokenExpired       refusal = "token-expired"
	refusedTokenIssuer        refusal = "token-issuer" // it is for other issuers
	refusedCredentials        refusal = "credentials"  // at the token endpoint
)

var refusals = []refusal{
	refusedNoCertificate, refusedCertificateExpired, refusedAuthority, refusedName,
	refusedNoToken, refusedToken, refusedTokenExpired, refusedTokenIssuer, refusedCredentials,
}

// refuse counts and logs a refusal; issuerID is "" where nobody knows it.
func (d *d1Side) refuse(r *http.Request, issuerID string, reason refusal) {
	d.Metrics.refused.WithLabelValues(issuerID, string(reason)).Inc()
	annotate(r.Context(), slog.String("issuerId", issuerID), slog.String("refused", string(reason)))
}

// admit lets D1 through, and answers everybody else: 401 without a body, as D1 wants it.
func (d *d1Side) admit(w http.ResponseWriter, r *http.Request, issuer *Issuer) bool {
	reason := d.certificate(r, issuer)
	if reason == "" && !issuer.WithoutToken {
		token, _ := bearer(r)
		reason = d.tokens.verify(token, issuer.ID)
	}
	switch reason {
	case "":
		return true
	case refusedNoToken:
		w.Header().Set("WWW-Authenticate", `Bearer realm="cardorder"`)
	case refusedToken, refusedTokenExpired, refusedTokenIssuer:
		w.Header().Set("WWW-Authenticate", `Bearer realm="cardorder", error="invalid_token"`)
	default: // only another connection can bring another certificate
		w.Header().Set("Connection", "close")
	}
	d.refuse(r, issuer.ID, reason)
	w.WriteHeader(http.StatusUnauthorized)
	return false
}

// certificate checks what a caller's certificate has to be for an issuer. TLS has
// verified it when the connection was made; what may have changed since is looked at
// again, for D1 keeps its connections.
func (d *d1Side) certificate(r *http.Request, issuer *Issuer) refusal {
	if issuer.WithoutCertificate {
		return ""
	}
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return refusedNoCertificate
	}
	cert, now := r.TLS.PeerCertificates[0], d.now()
	if now.After(cert.NotAfter) {
		return refusedCertificateExpired
	}
	if trusted := d.authorities(); trusted != acceptedUnder(r.Context()) && !verified(r.TLS.PeerCertificates, trusted, now) {
		return refusedAuthority
	}
	if len(issuer.ClientNames) > 0 && !slices.ContainsFunc(issuer.ClientNames, func(name string) bool { return isNamed(cert, name) }) {
		return refusedName
	}
	return ""
}

func (d *d1Side) authorities() *x509.CertPool {
	if d.ClientAuthorities == nil {
		return nil
	}
	return d.ClientAuthorities()
}

func verified(chain []*x509.Certificate, trusted *x509.CertPool, now time.Time) bool {
	if trusted == nil {
		return false // nil would mean the system's authorities
	}
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: trusted, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err == nil
}

// isNamed compares with the names that an authority vouches for. DNS names have no case.
func isNamed(cert *x509.Certificate, name string) bool {
	return cert.Subject.CommonName == name ||
		slices.ContainsFunc(cert.DNSNames, func(dns string) bool { return strings.EqualFold(dns, name) })
}

type acceptedKey struct{}

// AcceptedUnder notes on a connection which authorities were trusted when it was made.
func AcceptedUnder(ctx context.Context, trusted *x509.CertPool) context.Context {
	return context.WithValue(ctx, acceptedKey{}, trusted)
}

func acceptedUnder(ctx context.Context) *x509.CertPool {
	trusted, _ := ctx.Value(acceptedKey{}).(*x509.CertPool)
	return trusted
}
