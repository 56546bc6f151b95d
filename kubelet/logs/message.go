package logs

import (
	"io"
	"os"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// messageBytes bounds a termination message file. Source: API reference,
// Container.terminationMessagePath.
const messageBytes = 4096

// Message is the termination message of a container that has ended: the content of its
// message file, or the end of its log where the policy says so and it failed.
func Message(s *cri.ContainerStatus) string {
	path := s.Annotations["io.kubernetes.container.terminationMessagePath"]
	text := ""
	for _, m := range s.Mounts {
		if path == "" || m.ContainerPath != path {
			continue
		}
		if f, err := os.Open(m.HostPath); err == nil {
			data, _ := io.ReadAll(io.LimitReader(f, messageBytes))
			f.Close()
			text = string(data)
		}
	}
	if text == "" && s.ExitCode != 0 && s.Annotations["io.kubernetes.container.terminationMessagePolicy"] == "FallbackToLogsOnError" {
		text = Tail(s.LogPath)
	}
	if text == "" {
		return s.Message
	}
	return text
}
