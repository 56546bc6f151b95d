package resources

import (
	"crypto/tls"
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

var secrets = Resource[corev1.Secret]{
	Group: "", Version: "v1", Kind: "Secret", Plural: "secrets", WholeMeta: true, NoGeneration: true,
	List: listOf[corev1.SecretList],
	Default: func(s *corev1.Secret) {
		def(&s.Type, corev1.SecretTypeOpaque)
		// stringData is for writing only: it becomes data.
		for k, v := range s.StringData {
			if s.Data == nil {
				s.Data = map[string][]byte{}
			}
			s.Data[k] = []byte(v)
		}
		s.StringData = nil
	},
	Main: Part[corev1.Secret]{
		// An update that names no type keeps it.
		Prepare: func(_ *Request, obj, old *corev1.Secret) {
			if old != nil {
				def(&obj.Type, old.Type)
			}
		},
		Validate: withoutRequest(validateSecret),
		Warnings: func(_ *Request, s, _ *corev1.Secret) []string {
			if s.Type != corev1.SecretTypeTLS {
				return nil
			}
			if _, err := tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey]); err != nil {
				return []string{err.Error()}
			}
			return nil
		},
	},
	Fields:     func(s *corev1.Secret) fields.Set { return fields.Set{"type": string(s.Type)} },
	FieldNames: []string{"type"},
	Docs: map[string]string{
		"Type": corev1.Secret{}.SwaggerDoc()["type"],
		"Data": corev1.Secret{}.SwaggerDoc()["data"],
	},
	Columns: []Column[corev1.Secret]{
		text("Type", func(s *corev1.Secret) string { return string(s.Type) }),
		counted("Data", func(s *corev1.Secret) int { return len(s.Data) }),
		ageColumn[corev1.Secret](),
	},
}

func validateSecret(s, old *corev1.Secret) field.ErrorList {
	var f check.Faults
	data := field.NewPath("data")
	total := 0
	for k, v := range s.Data {
		f.Each(data.Key(k), k, validation.IsConfigMapKey(k))
		total += len(v)
	}
	if total > maxDataBytes {
		f.TooLong(data, "", maxDataBytes)
	}
	need := func(keys ...string) {
		for _, k := range keys {
			if _, ok := s.Data[k]; !ok {
				f.Required(data.Key(k), "")
			}
		}
	}
	object := func(key string) {
		need(key)
		if b, ok := s.Data[key]; ok {
			if err := json.Unmarshal(b, &map[string]any{}); err != nil {
				f.Invalid(data.Key(key), "<secret contents redacted>", err.Error())
			}
		}
	}
	switch s.Type {
	case corev1.SecretTypeServiceAccountToken:
		if s.Annotations[corev1.ServiceAccountNameKey] == "" {
			f.Required(field.NewPath("metadata", "annotations").Key(corev1.ServiceAccountNameKey), "")
		}
	case corev1.SecretTypeDockercfg:
		object(corev1.DockerConfigKey)
	case corev1.SecretTypeDockerConfigJson:
		object(corev1.DockerConfigJsonKey)
	case corev1.SecretTypeBasicAuth:
		_, user := s.Data[corev1.BasicAuthUsernameKey]
		if _, password := s.Data[corev1.BasicAuthPasswordKey]; !user && !password {
			need(corev1.BasicAuthUsernameKey, corev1.BasicAuthPasswordKey)
		}
	case corev1.SecretTypeSSHAuth:
		if len(s.Data[corev1.SSHAuthPrivateKey]) == 0 {
			f.Required(data.Key(corev1.SSHAuthPrivateKey), "")
		}
	case corev1.SecretTypeTLS:
		need(corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
	}
	if old == nil {
		return f.List()
	}
	f.Same(field.NewPath("type"), s.Type, old.Type)
	if valueOr(old.Immutable, false) {
		if !valueOr(s.Immutable, false) {
			f.Forbidden(field.NewPath("immutable"), fixedByImmutable)
		}
		if !equality.Semantic.DeepEqual(s.Data, old.Data) {
			f.Forbidden(data, fixedByImmutable)
		}
	}
	return f.List()
}
