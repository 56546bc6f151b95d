package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// WebhookConfig says whom events are sent to.
type WebhookConfig struct {
	// File is a kubeconfig whose current context is the receiver.
	File    string
	Buffer  int           // events that wait; default 10,000
	Batch   int           // events of one call; default 400
	MaxWait time.Duration // of an event for others to go with; default 30 s
	Backoff time.Duration // before the first retry; default 10 s
	Errors  *prometheus.CounterVec
	Log     *slog.Logger
}

// webhookTries is how often a batch is sent before it is lost; each pause is half as long again.
const webhookTries = 5

// Webhook is the backend that posts lists of events.
type Webhook struct {
	cfg    WebhookConfig
	url    string
	client *http.Client
	queue  chan *auditv1.Event
}

// NewWebhook reads the kubeconfig. It calls nobody yet.
func NewWebhook(cfg WebhookConfig) (*Webhook, error) {
	rc, err := clientcmd.BuildConfigFromFlags("", cfg.File)
	if err != nil {
		return nil, err
	}
	rc.Timeout = 30 * time.Second
	client, err := rest.HTTPClientFor(rc)
	if err != nil {
		return nil, err
	}
	if cfg.Buffer <= 0 {
		cfg.Buffer = 10000
	}
	if cfg.Batch <= 0 {
		cfg.Batch = 400
	}
	if cfg.MaxWait <= 0 {
		cfg.MaxWait = 30 * time.Second
	}
	if cfg.Backoff <= 0 {
		cfg.Backoff = 10 * time.Second
	}
	return &Webhook{cfg: cfg, url: rc.Host, client: client, queue: make(chan *auditv1.Event, cfg.Buffer)}, nil
}

// Send is Backend's. It never waits.
func (w *Webhook) Send(ev *auditv1.Event) bool {
	select {
	case w.queue <- ev:
		return true
	default:
		w.cfg.Errors.WithLabelValues("webhook").Inc()
		return false
	}
}

// Run is Backend's.
func (w *Webhook) Run(ctx context.Context) error {
	defer w.client.CloseIdleConnections()
	var batch []auditv1.Event
	timer := time.NewTimer(w.cfg.MaxWait)
	defer timer.Stop()
	for {
		full := false
		select {
		case ev := <-w.queue:
			if len(batch) == 0 {
				timer.Reset(w.cfg.MaxWait)
			}
			batch = append(batch, *ev)
			full = len(batch) >= w.cfg.Batch
		case <-timer.C:
			full = len(batch) > 0
		case <-ctx.Done():
			for len(w.queue) > 0 {
				batch = append(batch, *<-w.queue)
			}
			if len(batch) > 0 {
				last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
				defer cancel()
				if err := w.post(last, batch); err != nil {
					w.lose(batch, err)
				}
			}
			return nil
		}
		if full {
			w.deliver(ctx, batch)
			batch = nil
		}
	}
}

func (w *Webhook) deliver(ctx context.Context, batch []auditv1.Event) {
	pause := w.cfg.Backoff
	var err error
	for try := range webhookTries {
		if try > 0 {
			select {
			case <-ctx.Done():
				w.lose(batch, err)
				return
			case <-time.After(pause):
			}
			pause += pause / 2
		}
		if err = w.post(ctx, batch); err == nil {
			return
		}
	}
	w.lose(batch, err)
}

func (w *Webhook) lose(batch []auditv1.Event, err error) {
	w.cfg.Errors.WithLabelValues("webhook").Add(float64(len(batch)))
	w.cfg.Log.Error("audit events could not be sent and are lost", "events", len(batch), "err", err)
}

func (w *Webhook) post(ctx context.Context, batch []auditv1.Event) error {
	text, err := json.Marshal(auditv1.EventList{TypeMeta: metav1.TypeMeta{APIVersion: "audit.k8s.io/v1", Kind: "EventList"}, Items: batch})
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(text))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := w.client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)) // so that the connection is used again
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s answers %s", w.url, resp.Status)
	}
	return nil
}
