package apiserver

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/keelson/keelson/apiserver/audit"
	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/rest"
)

// auditor is what the audit flags ask for; nil for nothing.
func (s *server) auditor(reg prometheus.Registerer) (*audit.Auditor, error) {
	c := s.cfg
	if c.AuditPolicyFile == "" {
		if c.AuditLogPath != "" || c.AuditWebhookFile != "" {
			s.log.Warn("nothing is recorded without --audit-policy-file")
		}
		return nil, nil
	}
	text, err := os.ReadFile(c.AuditPolicyFile)
	if err != nil {
		return nil, fmt.Errorf("--audit-policy-file: %w", err)
	}
	policy, err := audit.ReadPolicy(text)
	if err != nil {
		return nil, fmt.Errorf("--audit-policy-file: %s: %w", c.AuditPolicyFile, err)
	}
	log, lost := s.log.With("room", "audit"), audit.NewErrors(reg)
	var backends []audit.Backend
	if c.AuditLogPath != "" {
		backends = append(backends, audit.NewLog(audit.LogConfig{
			Path: c.AuditLogPath, MaxAgeDays: c.AuditLogMaxAge, Backups: c.AuditLogMaxBackups, MaxSizeMB: c.AuditLogMaxSize,
			Compress: c.AuditLogCompress, Wait: c.AuditLogMode != "batch", Buffer: c.AuditLogBuffer, Errors: lost, Log: log,
		}))
	}
	if c.AuditWebhookFile != "" {
		hook, err := audit.NewWebhook(audit.WebhookConfig{
			File: c.AuditWebhookFile, Buffer: c.AuditWebhookBuffer, Batch: c.AuditWebhookBatch,
			MaxWait: c.AuditWebhookWait.Duration, Backoff: c.AuditWebhookBackoff.Duration, Errors: lost, Log: log,
		})
		if err != nil {
			return nil, fmt.Errorf("--audit-webhook-config-file: %w", err)
		}
		backends = append(backends, hook)
	}
	return audit.New(audit.Config{
		Policy: policy, Backends: backends, Strict: c.AuditLogMode == "blocking-strict", Readable: readable(s.reg), Registry: reg,
	}), nil
}

// readable makes JSON of what clients send and get.
func readable(reg *resources.Registry) func(contentType string, body []byte) []byte {
	return func(contentType string, body []byte) []byte {
		if bytes.HasPrefix(body, []byte("k8s\x00")) {
			raw, gvk, err := codec.Unwrap(body)
			if err != nil {
				return nil
			}
			obj := empty(reg, gvk)
			if obj == nil {
				return nil
			}
			if m, ok := obj.(interface{ Unmarshal([]byte) error }); !ok || m.Unmarshal(raw) != nil {
				return nil
			}
			obj.GetObjectKind().SetGroupVersionKind(gvk)
			text, err := json.Marshal(obj)
			if err != nil {
				return nil
			}
			return text
		}
		if json.Valid(body) {
			var out bytes.Buffer
			if json.Compact(&out, body) != nil {
				return nil
			}
			return out.Bytes()
		}
		if media, _, err := mime.ParseMediaType(contentType); err == nil && (media == codec.MediaYAML || media == "application/apply-patch+yaml") {
			if text, err := yaml.YAMLToJSON(body); err == nil {
				return text
			}
		}
		return nil
	}
}

// empty is a new object or list of a kind.
func empty(reg *resources.Registry, gvk schema.GroupVersionKind) runtime.Object {
	if row := reg.Kind(gvk); row != nil {
		return row.New()
	}
	for _, row := range reg.All() {
		if row.ListKind == gvk.Kind && row.GVK().GroupVersion() == gvk.GroupVersion() && row.NewList != nil {
			return row.NewList()
		}
	}
	return nil
}

func subject(u *authn.User, in *rest.Info) audit.Subject {
	return audit.Subject{
		User: u, Verb: in.Verb, Resource: in.Resource, Group: in.Group, Version: in.Version, Plural: in.Plural,
		Subresource: in.Subresource, Namespace: in.Namespace, Name: in.Name, Path: in.Path,
	}
}
