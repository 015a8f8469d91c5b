package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/tink-crypto/tink-go/v2/tink"

	"cardorder/internal/d1client"
	"cardorder/internal/local"
	"cardorder/internal/order"
)

// The comparator: a service that takes the same orders in the usual way. It checks
// the token, decodes and checks the order with the very code of the product, seals
// it, writes the same rows but our outbox message, and enqueues a River job
// instead, all in one transaction per request. It leaves out what would cost it
// something more: metrics, timeouts, the duplicate guard's and the replay's logic.

// riverCommand is the argument that makes this binary the comparator.
const riverCommand = "river-service"

// riverConfig goes to the comparator's process in a file.
type riverConfig struct {
	Listen, DatabaseURL string
	MaxConns            int32
	TokenHash           string
	Keyset, ContentHash string
	EncryptionKeyFile   string
	// Statements write the rows of an order: $1 order, $2 card, $3 request,
	// $4 consumer, $5 sealed production, $6 sealed JWE, $7 content hash.
	Statements []riverStatement
}

type riverStatement struct {
	SQL  string
	Args []int // which of the seven it takes, in its own order
}

// riverStatements are the inserts of the captured rows, without the outbox.
func riverStatements(c *captured) []riverStatement {
	var list []riverStatement
	for _, r := range c.rows {
		if r.table == "outbox" {
			continue
		}
		sql := c.insert(r, expressions{
			order: "$1::uuid::text", card: "$2::text", request: "$3::text", consumer: "$4::text", key: "$3::text", now: "now()",
			production: "$5::bytea", encrypted: "$6::bytea", hash: "$7::bytea",
		})
		sql = strings.ReplaceAll(sql, "($1::uuid::text)::uuid", "$1::uuid")
		sql = strings.ReplaceAll(sql, "ARRAY[$1::uuid::text]::uuid[]", "ARRAY[$1::uuid]")
		s := riverStatement{}
		// Number the parameters that this statement has.
		for n := 1; n <= 7; n++ {
			if from := fmt.Sprintf("$%d::", n); strings.Contains(sql, from) {
				s.Args = append(s.Args, n-1)
				sql = strings.ReplaceAll(sql, from, fmt.Sprintf("$%d::", len(s.Args)))
			}
		}
		s.SQL = sql
		list = append(list, s)
	}
	return list
}

// startRiver starts the comparator as a process of its own.
func (s *site) startRiver(ctx context.Context, d *database, rows *captured) (_ *service, err error) {
	c := riverConfig{
		DatabaseURL: d.url(), MaxConns: int32(s.maxConns), //nolint:gosec // a small number
		EncryptionKeyFile: filepath.Join(s.dir, encryptionKey), Statements: riverStatements(rows),
	}
	addresses, err := freeAddresses(ctx, 1)
	if err != nil {
		return nil, err
	}
	c.Listen = addresses[0]
	for name, value := range map[string]*string{
		local.FileTokenHash: &c.TokenHash, local.FileSealing: &c.Keyset, local.FileContentHash: &c.ContentHash,
	} {
		if *value, err = s.keys.Read(name); err != nil {
			return nil, err
		}
	}
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	config := filepath.Join(s.dir, "river.json")
	if err := os.WriteFile(config, text, 0o600); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	v := &service{token: s.token, api: c.Listen, stopD1: func() {}}
	if v.process, err = startProcess(s.dir, "river", nil, self, riverCommand, config); err != nil {
		return nil, err
	}
	if err := v.awaitReady(ctx, "http://"+c.Listen+"/readyz"); err != nil {
		v.process.stop()
		return nil, err
	}
	return v, nil
}

// migrateRiver makes River's tables.
func migrateRiver(ctx context.Context, url string) error {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	m, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	if _, err := m.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return fmt.Errorf("making River's tables: %w", err)
	}
	return nil
}

// sendOrder is the job: what a worker needs to find the order.
type sendOrder struct {
	IssuerID string `json:"issuerId"`
	OrderID  string `json:"orderId"`
	CardID   string `json:"cardId"`
}

func (sendOrder) Kind() string { return "send_order" }

type riverService struct {
	riverConfig
	token     [sha256.Size]byte
	hashKey   []byte
	seal      tink.AEAD
	encrypter *d1client.Encrypter
	rules     *order.Rules
	pool      *pgxpool.Pool
	jobs      *river.Client[pgx.Tx]
	log       *slog.Logger
}

func runRiver(path string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := &riverService{log: slog.New(slog.NewJSONHandler(os.Stderr, nil))}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &s.riverConfig); err != nil {
		return err
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	defer s.pool.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /v1/issuers/{issuerId}/orders", s.placeOrder)
	srv := &http.Server{Addr: s.Listen, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		_ = srv.Close()
	}()
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (s *riverService) open(ctx context.Context) error {
	hash, err := hex.DecodeString(s.TokenHash)
	if err != nil || copy(s.token[:], hash) != sha256.Size {
		return errors.New("the token's hash is not a SHA-256 in hex")
	}
	s.hashKey = []byte(s.ContentHash)
	if s.seal, err = openKeyset(s.Keyset); err != nil {
		return err
	}
	jwk, err := os.ReadFile(s.EncryptionKeyFile)
	if err != nil {
		return err
	}
	key, err := d1client.ParsePublicJWK(jwk)
	if err != nil {
		return err
	}
	if s.encrypter, err = d1client.NewEncrypter(key); err != nil {
		return err
	}
	s.rules = &order.Rules{Guard: order.PANGuard{BINs: []string{"411111", "555555"}}}
	cfg, err := pgxpool.ParseConfig(s.DatabaseURL)
	if err != nil {
		return errors.New("the database's URL cannot be read")
	}
	cfg.MaxConns = s.MaxConns
	if s.pool, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return err
	}
	// Without queues it only inserts, as ours only accepts.
	s.jobs, err = river.NewClient(riverpgxv5.New(s.pool), &river.Config{Logger: s.log})
	return err
}

func (s *riverService) placeOrder(w http.ResponseWriter, r *http.Request) {
	started := time.Now()
	correlationID := uuid.NewString()
	status, answer := s.accept(r)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Correlation-Id", correlationID)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer)
	s.log.LogAttrs(r.Context(), slog.LevelInfo, "request", slog.String("method", r.Method), slog.Int("status", status),
		slog.Float64("durationMs", float64(time.Since(started).Microseconds())/1e3), slog.String("correlationId", correlationID),
		slog.String("orderId", answer.ID), slog.String("issuerRequestId", answer.IssuerRequestID))
}

// orderAnswer is as large as ours.
type orderAnswer struct {
	ID                  string            `json:"id,omitempty"`
	IssuerID            string            `json:"issuerId,omitempty"`
	IssuerRequestID     string            `json:"issuerRequestId,omitempty"`
	Status              string            `json:"status,omitempty"`
	CardID              string            `json:"cardId,omitempty"`
	ConsumerID          string            `json:"consumerId,omitempty"`
	CardProductID       string            `json:"cardProductId,omitempty"`
	DistributionChannel string            `json:"distributionChannel,omitempty"`
	Terms               *order.Terms      `json:"terms,omitempty"`
	Metadata            map[string]string `json:"metadata,omitempty"`
	CreatedAt           time.Time         `json:"createdAt,omitzero"`
	Faults              order.Faults      `json:"errors,omitempty"`
}

func (s *riverService) accept(r *http.Request) (int, orderAnswer) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	hash := sha256.Sum256([]byte(token))
	if !ok || subtle.ConstantTimeCompare(hash[:], s.token[:]) == 0 {
		return http.StatusUnauthorized, orderAnswer{}
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 128<<10))
	if err != nil {
		return http.StatusBadRequest, orderAnswer{}
	}
	request, faults := order.Decode(body, s.rules)
	if faults != nil {
		return http.StatusBadRequest, orderAnswer{Faults: faults}
	}
	if err := s.encrypter.Check(time.Now(), request.Production.EncryptedData); err != nil {
		return http.StatusBadRequest, orderAnswer{}
	}
	id, err := uuid.NewV7()
	if err == nil {
		err = s.store(r.Context(), r.PathValue("issuerId"), id, request)
	}
	if err != nil {
		s.log.Error("storing an order failed", "error", err)
		return http.StatusInternalServerError, orderAnswer{}
	}
	p := &request.Production
	terms := p.Terms()
	return http.StatusCreated, orderAnswer{
		ID: id.String(), IssuerID: r.PathValue("issuerId"), IssuerRequestID: p.IssuerRequestID, Status: string(order.Accepted),
		CardID: request.CardID, ConsumerID: p.ConsumerID, CardProductID: p.CardProductID,
		DistributionChannel: string(p.Channel), Terms: &terms, Metadata: request.Metadata, CreatedAt: time.Now(),
	}
}

func (s *riverService) store(ctx context.Context, issuer string, id uuid.UUID, request *order.Request) error {
	p := request.Production
	encryptedData := p.EncryptedData
	p.EncryptedData = ""
	body, err := json.Marshal(p)
	if err != nil {
		return err
	}
	production, err := s.seal.Encrypt(body, []byte("production|"+issuer+"|"+id.String()))
	if err != nil {
		return err
	}
	sealed, err := s.seal.Encrypt([]byte(encryptedData), []byte("encrypted_data|"+issuer+"|"+id.String()))
	if err != nil {
		return err
	}
	mac := hmac.New(sha256.New, s.hashKey)
	mac.Write(request.Canonical)
	all := []any{id, request.CardID, p.IssuerRequestID, p.ConsumerID, production, sealed, mac.Sum(nil)}
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var b pgx.Batch
		for _, statement := range s.Statements {
			args := make([]any, len(statement.Args))
			for i, n := range statement.Args {
				args[i] = all[n]
			}
			b.Queue(statement.SQL, args...)
		}
		if err := tx.SendBatch(ctx, &b).Close(); err != nil {
			return err
		}
		_, err := s.jobs.InsertTx(ctx, tx, sendOrder{IssuerID: issuer, OrderID: id.String(), CardID: request.CardID}, nil)
		return err
	})
}
