package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"

	"cardorder/internal/local"
	"cardorder/internal/order"
)

// The comparator for sending: a worker of River that reads an order's sealed
// content, opens it with the same AEAD, posts it, and updates the order's row, in
// the usual way: one job after the other in each of MaxWorkers goroutines. It logs
// a line for each call.
//
// There are two of them. One stores nothing but that update. The other keeps the
// record that the product keeps: the attempt, the operation and the event, in the
// same transaction. Neither can tell an answer that was lost from a call that was
// never made.

// riverWorkerCommand is the argument that makes this binary the comparator.
const riverWorkerCommand = "river-worker"

// How River's own benchmark sets them: they bound how fast it can be, and its
// defaults (100 ms, 1 s) allow 16 workers no more than 160 jobs a second.
const (
	riverFetchCooldown     = 2 * time.Millisecond
	riverFetchPollInterval = 20 * time.Millisecond
)

// riverWorkerConfig goes to the comparator's process in a file.
type riverWorkerConfig struct {
	DatabaseURL string
	MaxConns    int32
	Keyset      string
	Workers     int
	Record      bool   // keep the product's record
	D1          string // address
}

// sealedFor is what the comparator's content is bound to. It is not the order's
// id, so that orders can be copied within the database; opening takes as long.
var sealedFor = []byte("order_payload|" + issuerID)

func openKeyset(text string) (tink.AEAD, error) {
	handle, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader([]byte(text))))
	if err != nil {
		return nil, errors.New("the sealing keyset cannot be read")
	}
	return aead.New(handle)
}

type riverWorker struct {
	river.WorkerDefaults[sendOrder]
	riverWorkerConfig
	seal   tink.AEAD
	pool   *pgxpool.Pool
	client *http.Client
	log    *slog.Logger
}

func runRiverWorker(path string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	w := &riverWorker{log: slog.New(slog.NewJSONHandler(os.Stderr, nil))}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &w.riverWorkerConfig); err != nil {
		return err
	}
	if w.seal, err = openKeyset(w.Keyset); err != nil {
		return err
	}
	cfg, err := pgxpool.ParseConfig(w.DatabaseURL)
	if err != nil {
		return errors.New("the database's URL cannot be read")
	}
	cfg.MaxConns = w.MaxConns
	if w.pool, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return err
	}
	defer w.pool.Close()
	w.client = newHTTPClient(w.Workers)
	workers := river.NewWorkers()
	river.AddWorker(workers, w)
	jobs, err := river.NewClient(riverpgxv5.New(w.pool), &river.Config{
		Logger: slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: w.Workers}}, Workers: workers,
		FetchCooldown: riverFetchCooldown, FetchPollInterval: riverFetchPollInterval,
	})
	if err != nil {
		return err
	}
	if err := jobs.Start(ctx); err != nil {
		return err
	}
	<-ctx.Done()
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return jobs.StopAndCancel(short)
}

// Work sends one order.
func (w *riverWorker) Work(ctx context.Context, job *river.Job[sendOrder]) error {
	started := time.Now()
	var requestID string
	var production, encryptedData []byte
	err := w.pool.QueryRow(ctx, `
		SELECT o.issuer_request_id, p.production, p.encrypted_data FROM orders o
		JOIN order_payload p ON p.issuer_id = o.issuer_id AND p.order_id = o.id WHERE o.issuer_id = $1 AND o.id = $2`,
		job.Args.IssuerID, job.Args.OrderID).Scan(&requestID, &production, &encryptedData)
	if err != nil {
		return err
	}
	body, err := w.body(requestID, production, encryptedData)
	if err != nil {
		return err
	}
	operationID, err := w.post(ctx, job.Args.CardID, body)
	if err != nil {
		return err
	}
	if err := w.update(ctx, job, operationID, started); err != nil {
		return err
	}
	w.log.LogAttrs(ctx, slog.LevelInfo, "attempt", slog.String("orderId", job.Args.OrderID), slog.String("issuerRequestId", requestID),
		slog.String("operationId", operationID), slog.Int("try", job.Attempt), slog.Float64("durationMs", float64(time.Since(started).Microseconds())/1e3))
	return nil
}

// update stores what came of the call: one round trip, one transaction.
func (w *riverWorker) update(ctx context.Context, job *river.Job[sendOrder], operationID string, started time.Time) error {
	issuer, id := job.Args.IssuerID, job.Args.OrderID
	var b pgx.Batch
	b.Queue(`
		UPDATE order_state SET version = version + 1, status = 'SUBMITTED', rank = 10, operation_id = $3, updated_at = now()
		WHERE issuer_id = $1 AND order_id = $2 AND status = 'ACCEPTED'`, issuer, id, operationID)
	if w.Record {
		attempt := uuid.New()
		b.Queue(`INSERT INTO operations (issuer_id, operation_id, order_id, operation, source) VALUES ($1, $2, $3, 'PRODUCE', 'answer')`,
			issuer, operationID, id)
		b.Queue(`
			INSERT INTO attempts (issuer_id, order_id, id, kind, outcome, reason, http_status, operation_id, correlation_id, started_at,
				duration_ms, claim_lost)
			VALUES ($1, $2, $3, 'submit', 'taken', 'accepted', 202, $4, $5, $6, $7, false)`,
			issuer, id, attempt, operationID, attempt.String(), started, time.Since(started).Milliseconds())
		b.Queue(`
			INSERT INTO order_events (issuer_id, order_id, seq, type, status, previous_status, attention, cause, cause_id)
			VALUES ($1, $2, 2, 'status-changed', 'SUBMITTED', 'ACCEPTED', '{}', 'attempt', $3)`, issuer, id, attempt.String())
	}
	return w.pool.SendBatch(ctx, &b).Close()
}

func (w *riverWorker) body(requestID string, production, encryptedData []byte) ([]byte, error) {
	plain, err := w.seal.Decrypt(production, sealedFor)
	if err != nil {
		return nil, err
	}
	var p order.Production
	if err := json.Unmarshal(plain, &p); err != nil {
		return nil, err
	}
	jwe, err := w.seal.Decrypt(encryptedData, sealedFor)
	if err != nil {
		return nil, err
	}
	p.EncryptedData, p.IssuerRequestID = string(jwe), requestID
	return p.Body()
}

func (w *riverWorker) post(ctx context.Context, card string, body []byte) (operationID string, err error) {
	url := "http://" + w.D1 + "/banking/v1/issuers/" + issuerID + "/physicalCards/" + card + production
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	r.Header.Set("Authorization", "Bearer bench")
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json")
	res, err := w.client.Do(r)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return "", err
	}
	if res.StatusCode != http.StatusAccepted {
		return "", fmt.Errorf("status %d", res.StatusCode)
	}
	var taken struct {
		OperationID string `json:"operationId"`
	}
	err = json.Unmarshal(answer, &taken)
	return taken.OperationID, err
}

// seedRiver puts n accepted orders and their jobs into empty tables.
func (b *bench) seedRiver(ctx context.Context, n int) error {
	if err := b.clear(ctx); err != nil {
		return err
	}
	text, err := b.site.keys.Read(local.FileSealing)
	if err != nil {
		return err
	}
	seal, err := openKeyset(text)
	if err != nil {
		return err
	}
	var p order.Production
	if err := json.Unmarshal(b.sample.Body, &p); err != nil {
		return err
	}
	jwe := p.EncryptedData
	p.EncryptedData = ""
	plain, err := json.Marshal(p)
	if err != nil {
		return err
	}
	production, err := seal.Encrypt(plain, sealedFor)
	if err != nil {
		return err
	}
	encrypted, err := seal.Encrypt([]byte(jwe), sealedFor)
	if err != nil {
		return err
	}
	e := manyOrders
	e.now = "now()"
	e.production, e.encrypted = fmt.Sprintf(`'\x%x'::bytea`, production), fmt.Sprintf(`'\x%x'::bytea`, encrypted)
	for _, r := range b.rows.rows {
		if r.table == "outbox" {
			continue
		}
		if _, err := b.db.conn.Exec(ctx, b.rows.insertMany(r, e, fmt.Sprintf("generate_series(1, %d) n", n), nil)); err != nil {
			return fmt.Errorf("filling %s: %w", r.table, err)
		}
	}
	return b.insertJobs(ctx, n)
}

// insertJobs writes the jobs in River's own way.
func (b *bench) insertJobs(ctx context.Context, n int) error {
	pool, err := pgxpool.New(ctx, b.db.url())
	if err != nil {
		return err
	}
	defer pool.Close()
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	rows, err := b.db.conn.Query(ctx, `SELECT issuer_id, id::text, card_id FROM orders ORDER BY id`)
	if err != nil {
		return err
	}
	orders, err := pgx.CollectRows(rows, pgx.RowToStructByPos[sendOrder])
	if err != nil {
		return err
	}
	const chunk = 5000
	for from := 0; from < len(orders); from += chunk {
		var many []river.InsertManyParams
		for _, o := range orders[from:min(from+chunk, len(orders))] {
			many = append(many, river.InsertManyParams{Args: o})
		}
		if _, err := client.InsertManyFast(ctx, many); err != nil {
			return fmt.Errorf("inserting jobs: %w", err)
		}
	}
	if len(orders) != n {
		return fmt.Errorf("%d orders for %d jobs", len(orders), n)
	}
	return b.settle(ctx)
}

// measureRiverSending measures the comparator.
func (b *bench) measureRiverSending(ctx context.Context, d dispatch) (_ *result, err error) {
	if b.sample.Body == nil {
		return nil, fmt.Errorf("%s: no order was sent before whose body could be posted", d.name)
	}
	if err := b.seedRiver(ctx, d.orders); err != nil {
		return nil, err
	}
	if err := b.stub.control(ctx, stubControl{Reset: true}); err != nil {
		return nil, err
	}
	text, err := b.site.keys.Read(local.FileSealing)
	if err != nil {
		return nil, err
	}
	c, err := json.Marshal(riverWorkerConfig{
		DatabaseURL: b.db.url(), MaxConns: int32(b.maxConns), //nolint:gosec // a small number
		Keyset: text, Workers: d.concurrency, Record: d.name == nameRiverRecord, D1: b.stub.address,
	})
	if err != nil {
		return nil, err
	}
	config := filepath.Join(b.dir, "river-worker.json")
	if err := os.WriteFile(config, c, 0o600); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	svc := &service{stopD1: func() {}}
	if svc.process, err = startProcess(b.dir, "river-worker", nil, self, riverWorkerCommand, config); err != nil {
		return nil, err
	}
	defer svc.stop()
	return b.release(ctx, svc, d, func(ctx context.Context) (bool, error) {
		var done int
		err := b.db.conn.QueryRow(ctx, `SELECT count(*) FROM river_job WHERE state = 'completed'`).Scan(&done)
		return done == d.orders, err
	}, func(ctx context.Context) error {
		var submitted int
		err := b.db.conn.QueryRow(ctx, `SELECT count(*) FROM order_state WHERE status = 'SUBMITTED'`).Scan(&submitted)
		if err == nil && submitted != d.orders {
			err = fmt.Errorf("%s: %d of %d orders are updated", d.name, submitted, d.orders)
		}
		return err
	})
}
