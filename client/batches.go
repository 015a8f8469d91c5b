package client

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"time"
)

// Format is the form of a batch's file.
type Format string

const (
	FormatNDJSON Format = "ndjson" // a NewOrder as JSON per line
	FormatCSV    Format = "csv"    // with a header line
)

var mediaTypes = map[Format]string{FormatNDJSON: "application/x-ndjson", FormatCSV: "text/csv; charset=utf-8"}

// Upload is a file of orders.
type Upload struct {
	// IdempotencyKey names the batch (1 to 128 visible ASCII characters). Make it of
	// what names the file: the same key with the same file goes on where an upload
	// broke off, also in another process and another day.
	IdempotencyKey string
	// Open gives the file from its start, uncompressed. It is called for every
	// attempt: going on also begins with the first byte.
	Open func() (io.ReadCloser, error)
	// Format is FormatNDJSON where it is empty.
	Format Format
	// Gzip compresses the file on its way.
	Gzip bool
	// Hold keeps the orders back until ReleaseBatch.
	Hold bool
}

// BatchStatus is where a batch stands.
type BatchStatus string

const (
	BatchReceiving   BatchStatus = "RECEIVING"
	BatchInterrupted BatchStatus = "INTERRUPTED" // upload it again under its key
	BatchCompleted   BatchStatus = "COMPLETED"
	BatchCancelled   BatchStatus = "CANCELLED"
)

// Batch is a file of orders and how far it has been read.
type Batch struct {
	ID             string      `json:"id"`
	IssuerID       string      `json:"issuerId"`
	IdempotencyKey string      `json:"idempotencyKey"`
	Status         BatchStatus `json:"status"`
	Format         Format      `json:"format"`
	Hold           bool        `json:"hold"`
	Rows           BatchRows   `json:"rows"`
	CreatedAt      time.Time   `json:"createdAt"`
	CreatedBy      string      `json:"createdBy"`
	UpdatedAt      time.Time   `json:"updatedAt"`
	CompletedAt    *time.Time  `json:"completedAt"`
}

// BatchRows counts rows.
type BatchRows struct {
	Read     int `json:"read"`
	Accepted int `json:"accepted"`
	Replayed int `json:"replayed"`
	Refused  int `json:"refused"`
}

// BatchResult is what became of one row.
type BatchResult struct {
	Line            int      `json:"line"`
	Outcome         string   `json:"outcome"` // OutcomeAccepted, OutcomeReplayed or OutcomeRefused
	Order           string   `json:"order"`
	IssuerRequestID string   `json:"issuerRequestId"`
	Warnings        []string `json:"warnings"`
	// Of OutcomeRefused.
	Problem          string  `json:"problem"` // as Problem.Type
	ConflictingOrder string  `json:"conflictingOrder"`
	Errors           []Fault `json:"errors"`
}

// UploadedBatch is a batch whose file the service has read to its end.
type UploadedBatch struct {
	Batch
	// Replayed tells that it had been read before.
	Replayed bool
}

// UploadBatch sends a file of orders. When the connection breaks it sends the
// file again under the same key, and the service goes on where it was; nothing
// is ordered twice. While another upload of the batch is under way it waits, for
// as many attempts as there are. That a row is refused is no error: see [Client.BatchResults].
func (c *Client) UploadBatch(ctx context.Context, u Upload) (*UploadedBatch, error) {
	r, err := uploadRequest("uploading a batch", &u)
	if err != nil {
		return nil, err
	}
	if u.Hold {
		r.query = url.Values{"hold": {"true"}}
	}
	r.again = func(p *Problem) bool {
		return p.Type == ProblemBatchInProgress || p.Type == ProblemIncompleteBody
	}
	batch := new(UploadedBatch)
	header, err := c.ask(ctx, r, &batch.Batch)
	if err != nil {
		return nil, err
	}
	batch.Replayed = header.Get(replayHeader) == "true"
	return batch, nil
}

// BatchDryRun is what would become of a file.
type BatchDryRun struct {
	Rows    BatchRows     `json:"rows"`
	Refused []BatchResult `json:"refused"` // the first thousand
}

// DryRunBatch tells what UploadBatch would do, and stores nothing. The key may be
// left out.
func (c *Client) DryRunBatch(ctx context.Context, u Upload) (*BatchDryRun, error) {
	if u.IdempotencyKey == "" {
		u.IdempotencyKey = rand.Text()
	}
	r, err := uploadRequest("trying a batch out", &u)
	if err != nil {
		return nil, err
	}
	r.query = url.Values{"dryRun": {"true"}}
	if u.Hold {
		r.query.Set("hold", "true")
	}
	r.again = func(p *Problem) bool { return p.Type == ProblemIncompleteBody }
	return get[BatchDryRun](ctx, c, r)
}

func uploadRequest(doing string, u *Upload) (*request, error) {
	if u.Format == "" {
		u.Format = FormatNDJSON
	}
	err := checkKey(u.IdempotencyKey)
	switch {
	case u.IdempotencyKey == "":
		err = errors.New("there is no IdempotencyKey")
	case u.Open == nil:
		err = errors.New("there is no Open")
	case mediaTypes[u.Format] == "":
		err = errors.New("the Format is neither NDJSON nor CSV")
	}
	if err != nil {
		return nil, fmt.Errorf("cardorder: %s: %w", doing, err)
	}
	r := &request{doing: doing, method: http.MethodPost, path: "/order-batches", upload: u, header: http.Header{
		"Content-Type": {mediaTypes[u.Format]},
		keyHeader:      {u.IdempotencyKey},
		// Whoever is refused at the door need not send the file first.
		"Expect": {"100-continue"},
	}}
	if u.Gzip {
		r.header.Set("Content-Encoding", "gzip")
	}
	return r, nil
}

func batchPath(batchID, more string) string {
	return "/order-batches/" + url.PathEscape(batchID) + more
}

// Batch returns a batch as it is now, also while it is being uploaded.
func (c *Client) Batch(ctx context.Context, batchID string) (*Batch, error) {
	return get[Batch](ctx, c, &request{doing: "reading a batch", method: http.MethodGet, path: batchPath(batchID, "")})
}

// BatchFilter says which batches are listed.
type BatchFilter struct {
	IdempotencyKey string
	Limit          int    // of a page; 0 means the service's default
	Cursor         string // NextCursor of the page before
}

// BatchPage is a part of a list. NextCursor leads to the next one; it is empty
// at the end.
type BatchPage struct {
	Data       []Batch `json:"data"`
	NextCursor string  `json:"nextCursor"`
}

// Batches returns one page of the batches that f lets through.
func (c *Client) Batches(ctx context.Context, f BatchFilter) (*BatchPage, error) {
	q := make(url.Values)
	if f.IdempotencyKey != "" {
		q.Set("idempotencyKey", f.IdempotencyKey)
	}
	if f.Cursor != "" {
		q.Set("cursor", f.Cursor)
	}
	setLimit(q, f.Limit)
	return get[BatchPage](ctx, c, &request{doing: "listing batches", method: http.MethodGet, path: "/order-batches", query: q})
}

// maxLine is the longest result of a row that is read, in bytes.
const maxLine = 4 << 20

// BatchResults goes through what became of the rows, by line: all of them, or
// those with one outcome. It ends after an error. When the stream breaks it is
// opened again and goes on after the last line that came.
func (c *Client) BatchResults(ctx context.Context, batchID, outcome string) iter.Seq2[BatchResult, error] {
	r := &request{
		doing: "reading a batch's results", method: http.MethodGet, path: batchPath(batchID, "/results"),
		header: http.Header{"Accept": {"application/x-ndjson"}},
	}
	if outcome != "" {
		r.query = url.Values{"outcome": {outcome}}
	}
	return func(yield func(BatchResult, error) bool) {
		last, enough := 0, false
		read := func() error {
			a, err := c.send(ctx, r)
			if err != nil {
				return err
			}
			defer a.close()
			lines := bufio.NewScanner(a)
			lines.Buffer(nil, maxLine)
			for lines.Scan() {
				var result BatchResult
				if json.Unmarshal(lines.Bytes(), &result) != nil {
					// Half a line is what a broken stream ends with.
					return &networkError{text: "a line of the stream cannot be read", cause: errNotExpected}
				}
				if result.Line <= last {
					continue // came before the stream broke
				}
				last = result.Line
				if enough = !yield(result, nil); enough {
					return nil
				}
			}
			switch err := lines.Err(); {
			case errors.Is(err, bufio.ErrTooLong):
				return fmt.Errorf("a line of the stream has more than %d bytes", maxLine)
			case err != nil:
				return a.failure(err)
			}
			return nil
		}
		if err := c.repeat(ctx, r, read); err != nil && !enough {
			yield(BatchResult{}, err)
		}
	}
}

// BatchChange is what became of the orders of a batch. What a lost answer had
// changed already counts as unchanged.
type BatchChange struct {
	Batch     Batch `json:"batch"`
	Changed   int   `json:"changed"`
	Unchanged int   `json:"unchanged"` // were so already, or had ended
	TooLate   int   `json:"tooLate"`   // are being sent or were sent
}

// HoldBatch keeps the orders of a batch back that were not sent yet, those of
// rows still to come included.
func (c *Client) HoldBatch(ctx context.Context, batchID string) (*BatchChange, error) {
	return c.changeBatch(ctx, batchID, "holding a batch", "/hold")
}

// ReleaseBatch lets the held orders of a batch go on.
func (c *Client) ReleaseBatch(ctx context.Context, batchID string) (*BatchChange, error) {
	return c.changeBatch(ctx, batchID, "releasing a batch", "/release")
}

// CancelBatch cancels the orders of a batch that were not sent yet, and ends an
// upload that is under way.
func (c *Client) CancelBatch(ctx context.Context, batchID string) (*BatchChange, error) {
	return c.changeBatch(ctx, batchID, "cancelling a batch", "/cancel")
}

func (c *Client) changeBatch(ctx context.Context, batchID, doing, action string) (*BatchChange, error) {
	return get[BatchChange](ctx, c, &request{doing: doing, method: http.MethodPost, path: batchPath(batchID, action)})
}
