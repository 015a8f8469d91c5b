package api

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"github.com/go-chi/chi/v5"
)

// Scopes a client can have.
const (
	ScopeRead    = "orders:read"    // see orders
	ScopeWrite   = "orders:write"   // place orders
	ScopeOperate = "orders:operate" // hold, release, cancel, retry and refresh them; pause and resume lanes
)

// Scopes lists them all.
var Scopes = []string{ScopeRead, ScopeWrite, ScopeOperate}

// Client is a system that may call the API.
type Client struct {
	Name      string
	TokenHash [sha256.Size]byte // of its bearer token
	Scopes    []string
	Issuers   []string
}

type clientKey struct{}

func caller(ctx context.Context) *Client {
	c, _ := ctx.Value(clientKey{}).(*Client)
	return c
}

// authenticate finds the client of a bearer token. Tokens are long and random:
// looking up their hash reveals nothing by its timing.
func authenticate(clients []Client) func(http.Handler) http.Handler {
	byHash := make(map[[sha256.Size]byte]*Client, len(clients))
	for i := range clients {
		byHash[clients[i].TokenHash] = &clients[i]
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			token, ok := bearer(r)
			client := byHash[sha256.Sum256([]byte(token))]
			if !ok || client == nil {
				writeProblem(w, r, errUnauthorized)
				return
			}
			annotate(r.Context(), slog.String("client", client.Name))
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), clientKey{}, client)))
		})
	}
}

func bearer(r *http.Request) (token string, ok bool) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	return token, ok && strings.EqualFold(scheme, "Bearer") && token != ""
}

// authorize lets a client through that has the scope and may act for the issuer.
func (s *server) authorize(scope string) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			client, issuer := caller(r.Context()), chi.URLParam(r, "issuerId")
			switch {
			case s.issuers[issuer] == nil:
				writeProblem(w, r, errNoSuchIssuer)
			case !slices.Contains(client.Issuers, issuer):
				writeProblem(w, r, newProblem(http.StatusForbidden, "forbidden", "Not allowed",
					"The token may not act for this issuer."))
			case !slices.Contains(client.Scopes, scope):
				writeProblem(w, r, newProblem(http.StatusForbidden, "forbidden", "Not allowed",
					"The token lacks the scope "+scope+"."))
			default:
				annotate(r.Context(), slog.String("issuerId", issuer))
				next.ServeHTTP(w, r)
			}
		})
	}
}
